//! Nodes.

use super::{Agent, conflict, in_doubt};
use crate::{
    agent::node,
    api::types::{ApiError, NodeRow},
    model::Name,
};

impl Agent {
    pub(super) async fn list_nodes(&self) -> Result<Vec<NodeRow>, ApiError> {
        self.shared.read_store().await?;
        let view = self.shared.view();
        let rows = view.nodes.values().map(|node| {
            let networks = view.endpoints.networks();
            NodeRow {
                name: node.name.to_string(),
                id: node.id.clone(),
                ip: node.vtep.to_string(),
                port: node.port,
                alive: view.is_alive(&node.name),
                gone_s: self.shared.lives.gone_for(&node.name).map(|gone| gone.as_secs()),
                endpoints: networks.map(|net| view.endpoints.count_on(net, &node.name)).sum(),
                here: node.name == self.shared.node.name,
            }
        });
        Ok(rows.collect())
    }

    pub(super) async fn remove_node(&self, name: &Name, force: bool) -> Result<(), ApiError> {
        let store = self.shared.usable_store().await?;
        if *name == self.shared.node.name {
            return Err(conflict(format!(
                "node '{name}' is this host: 'culvert purge' removes it, with its containers"
            )));
        }
        let what = format!("node '{name}'");
        let removed = node::remove(store.as_ref(), name, force).await;
        let revision = removed.map_err(|error| in_doubt(error, &what, "culvert node ls"))?;
        self.shared.settled(revision, &what, || Some(())).await
    }
}
