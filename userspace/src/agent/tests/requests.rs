//! Common requests, for the other tests.

use std::collections::BTreeMap;

use crate::{
    api::types::{ContainerCreate, NetworkCreate},
    model::{Driver, Isolation, Name, NameOptions, Privileges},
};

pub(super) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(super) fn network(request: &str) -> NetworkCreate {
    NetworkCreate {
        name: name(request),
        driver: Driver::Overlay,
        subnets: Vec::new(),
        gateway: None,
        vni: None,
        mtu: None,
        internal: false,
        learning: false,
        options: BTreeMap::new(),
        labels: BTreeMap::new(),
    }
}

pub(super) fn run(container: &str, network: &str) -> ContainerCreate {
    ContainerCreate {
        name: name(container),
        network: network.to_owned(),
        ip: None,
        more_ips: Vec::new(),
        mac: None,
        ports: Vec::new(),
        from: Vec::new(),
        expose: Vec::new(),
        ifname: None,
        netns: None,
        pid: None,
        auto_remove: false,
        command: vec!["sleep".to_owned()],
        names: NameOptions::default(),
        rerun: None,
        privileges: Privileges::default(),
        isolation: Isolation::default(),
    }
}
