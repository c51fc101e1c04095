//! Values of `-p` and `--from` of a container.

use std::collections::BTreeSet;

use ipnetwork::{IpNetwork, Ipv4Network};

use crate::{
    api::types::{ApiError, ErrorKind},
    model::{Name, PortRequest, Publish, ipv4_source},
};

/// Most published ports and ranges of one container: one record of the store holds all of them.
const MOST: usize = 1024;
/// Most values of `--from` of one container: one record of the store holds all of them.
const MOST_CLIENTS: usize = 256;

/// Reads the values of `-p` of a container.
///
/// # Errors
///
/// A value is malformed, or there are too many ports.
pub(crate) fn parse(container: &Name, given: &[String]) -> Result<Vec<PortRequest>, ApiError> {
    let mut requests = Vec::new();
    for text in given {
        let publish: Publish = text
            .parse()
            .map_err(|error: crate::model::Invalid| ApiError::new(ErrorKind::Invalid, error.0))?;
        requests.extend(publish.ports());
    }
    if requests.len() > MOST {
        return Err(ApiError::new(
            ErrorKind::Invalid,
            format!(
                "container '{container}': {} ports are too many to publish: {MOST} at most are valid",
                requests.len()
            ),
        ));
    }
    Ok(requests)
}

/// Reads the values of `--from` of a container, which publishes `ports`. Duplicates are removed.
///
/// # Errors
///
/// `ports` is empty, a value is IPv6, or there are too many values.
pub(crate) fn clients(
    container: &Name,
    ports: &[PortRequest],
    given: &[IpNetwork],
) -> Result<Vec<Ipv4Network>, ApiError> {
    let invalid = |line| ApiError::new(ErrorKind::Invalid, line);
    if ports.is_empty() && !given.is_empty() {
        return Err(invalid(format!(
            "container '{container}': --from is about published ports, and no port is published: --from with -p is valid"
        )));
    }
    let clients = given.iter().map(|from| ipv4_source(*from));
    let clients: BTreeSet<_> =
        clients.collect::<Result<_, _>>().map_err(|refusal| invalid(refusal.0))?;
    if clients.len() > MOST_CLIENTS {
        return Err(invalid(format!(
            "container '{container}': {} sources are too many: {MOST_CLIENTS} at most are valid",
            clients.len()
        )));
    }
    Ok(clients.into_iter().collect())
}
