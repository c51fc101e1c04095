//! Records of a large network, written to the store without the agents.

use std::{
    collections::BTreeMap,
    fs,
    future::Future,
    net::Ipv4Addr,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use culvert::model::{
    Driver, Endpoint, IpOwner, Key, MacAddr, Name, Network, Node, ROOT, SCHEMA, SandboxRef, Vni,
    VniOwner, encode, validate,
};
use culvert_common::abi::FdbKey;
use etcd_client::{Client, GetOptions, Txn, TxnOp};

/// Number of other hosts.
const NODES: u32 = 50;
/// Name and VNI of the network.
const NETWORK: &str = "scale";
const VNI: u32 = 256;
/// Name of the host's own container.
const OWN: &str = "own";
/// Operations of one transaction: the largest number that etcd accepts by default.
const OPS: usize = 128;
/// Largest answer of a raw read, bytes.
const MAX_ANSWER: usize = 1 << 30;

/// Operations on the store, in their order.
pub(super) type Plan = Vec<TxnOp>;

/// An endpoint of another host.
pub(super) struct Remote {
    number: u32,
}

impl Remote {
    /// Makes an endpoint. The endpoints of other hosts have the numbers from 1.
    pub(super) const fn new(number: u32) -> Self {
        Self { number }
    }

    /// Address of the endpoint. The number 0 is the host's own endpoint.
    fn ip(&self) -> Ipv4Addr {
        // The first address is the one after the gateway, 10.0.0.1.
        (u32::from(Ipv4Addr::new(10, 0, 0, 2)) + self.number).into()
    }

    /// Id of the endpoint. The ids are spread like those of [`culvert::model::ops`], which are
    /// random.
    fn id(&self) -> String {
        let spread = u64::from(self.number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        format!("{spread:016x}").repeat(4)
    }

    /// Key of the endpoint in the FDB.
    pub(super) fn fdb_key(&self) -> FdbKey {
        FdbKey::new(VNI, MacAddr::from_ipv4(self.ip()).0)
    }

    fn record(&self) -> anyhow::Result<Endpoint> {
        let container = format!("web-{}", self.number);
        Ok(Endpoint {
            schema: SCHEMA,
            id: self.id(),
            network: name(NETWORK)?,
            vni: vni()?,
            node: name(&format!("other{}", self.number % NODES))?,
            mac: MacAddr::from_ipv4(self.ip()),
            ipv4: Some(self.ip()),
            ipv6: None,
            additional: Vec::new(),
            ifname: "eth0".to_owned(),
            sandbox: SandboxRef {
                netns: format!("/run/netns/{container}").into(),
                owned: true,
                id: None,
            },
            container: name(&container)?,
            ports: Vec::new(),
            from: Vec::new(),
        })
    }

    /// Operations that write the records of the endpoint.
    pub(super) fn put(&self) -> anyhow::Result<Plan> {
        records(&self.record()?)
    }

    /// Operations that remove the records of the endpoint.
    pub(super) fn delete(&self) -> Plan {
        let network = format!("{ROOT}endpoints/{NETWORK}/{}", self.id());
        let address = format!("{ROOT}ipam/{NETWORK}/{}", self.ip());
        vec![TxnOp::delete(network, None), TxnOp::delete(address, None)]
    }
}

fn records(endpoint: &Endpoint) -> anyhow::Result<Plan> {
    let ip = endpoint.ipv4.context("no address")?;
    let owner = IpOwner { schema: SCHEMA, endpoint: endpoint.id.clone() };
    Ok(vec![
        TxnOp::put(Key::endpoint(&endpoint.network, &endpoint.id), encode(endpoint)?, None),
        TxnOp::put(Key::ipam(&endpoint.network, ip.into()), encode(&owner)?, None),
    ])
}

fn name(text: &str) -> anyhow::Result<Name> {
    Ok(text.parse()?)
}

fn vni() -> anyhow::Result<Vni> {
    Ok(VNI.try_into()?)
}

/// Writes the network, the nodes, an endpoint of `node` in the namespace `sandbox`, and `count`
/// endpoints of other hosts.
pub(super) fn fill(url: &str, count: u32, node: &str, sandbox: &Path) -> anyhow::Result<()> {
    let network = Network {
        schema: SCHEMA,
        name: name(NETWORK)?,
        id: "5c".repeat(32),
        driver: Driver::Overlay,
        subnets: validate::with_gateways(&["10.0.0.0/8".parse()?], None)?,
        vni: vni()?,
        mtu: 1450,
        internal: false,
        learning: false,
        options: BTreeMap::new(),
        labels: BTreeMap::new(),
    };
    let owner = VniOwner { schema: SCHEMA, network: network.name.clone() };
    let mut plan = vec![
        TxnOp::put(Key::network(&network.name), encode(&network)?, None),
        TxnOp::put(Key::vni(network.vni), encode(&owner)?, None),
    ];
    for number in 0..NODES {
        let last = u8::try_from(number + 1)?;
        let (name, id) = (name(&format!("other{number}"))?, format!("{number:064x}"));
        let record = Node::new(name, id, Ipv4Addr::new(198, 51, 100, last), 4789);
        plan.push(TxnOp::put(Key::node(&record.name), encode(&record)?, None));
    }
    let own = Endpoint {
        node: name(node)?,
        container: name(OWN)?,
        sandbox: SandboxRef { netns: sandbox.to_owned(), owned: false, id: None },
        ..Remote::new(0).record()?
    };
    plan.extend(records(&own)?);
    for number in 1..=count {
        plan.extend(Remote::new(number).put()?);
    }
    run(async {
        let mut client = connect(url).await?;
        let mut operations = plan.into_iter();
        loop {
            let part: Plan = operations.by_ref().take(OPS).collect();
            if part.is_empty() {
                return Ok(());
            }
            transact(&mut client, part).await?;
        }
    })
}

/// Writes the file of the container of [`fill`] into a state directory, as `culvert attach` does:
/// the record in the store alone gets no interface.
pub(super) fn agree(state_dir: &Path, sandbox: &Path) -> anyhow::Result<()> {
    let containers = state_dir.join("containers");
    fs::create_dir_all(&containers)?;
    let record = serde_json::json!({
        "schema": SCHEMA, "name": OWN, "origin": "attached", "netns": sandbox, "process": null,
        "exit_code": null, "log": null, "command": [], "auto_remove": false,
    });
    Ok(fs::write(containers.join(format!("{OWN}.json")), record.to_string())?)
}

/// Commits a plan. Returns the time of the answer.
pub(super) fn commit(url: &str, plan: Plan) -> anyhow::Result<Instant> {
    run(async {
        let mut client = connect(url).await?;
        transact(&mut client, plan).await?;
        Ok(Instant::now())
    })
}

/// How long one range read of everything takes.
pub(super) fn raw_read(url: &str) -> anyhow::Result<Duration> {
    run(async {
        let client = connect(url).await?;
        let mut kv = client.kv_client().max_decoding_message_size(MAX_ANSWER);
        let began = Instant::now();
        let answer = kv.get(ROOT, Some(GetOptions::new().with_prefix())).await?;
        let took = began.elapsed();
        ensure!(!answer.kvs().is_empty(), "etcd holds nothing");
        Ok(took)
    })
}

async fn connect(endpoint: &str) -> anyhow::Result<Client> {
    Ok(Client::connect([format!("http://{endpoint}")], None).await?)
}

async fn transact(client: &mut Client, plan: Plan) -> anyhow::Result<()> {
    let answer = client.txn(Txn::new().and_then(plan)).await?;
    if !answer.succeeded() {
        bail!("etcd: a transaction without conditions failed");
    }
    Ok(())
}

fn run<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(work)
}
