//! What is known of the uplinks, and what the programs on them cost.

use std::sync::PoisonError;

use super::{Host, error::blocking};
use crate::{
    agent::platform::Platform as _,
    choice::{self, Uplink},
    datapath::Price,
};

impl Host {
    /// Sees that both are there, and looks at the uplinks. See [`Assistants::keep`].
    pub(crate) async fn keep_assistants(&self) {
        self.assistants.keep(&self.netlink, self.vxlan_port).await;
        let known = choice::read(&self.netlink, &self.uplinks, self.vxlan_port).await;
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = known;
    }

    /// Measures the programs where the answer is of interest. The data plane does not wait
    /// for it.
    pub(crate) async fn price_uplinks(&self) {
        let (uplinks, _) = self.uplinks();
        if !uplinks.iter().any(Uplink::is_open) {
            return;
        }
        match blocking(Price::measure).await {
            Ok(Ok(price)) => drop(self.price.set(price)),
            Ok(Err(error)) => tracing::warn!("what XDP would cost is not known: {error}"),
            Err(error) => tracing::warn!("what XDP would cost is not known: {error}"),
        }
    }
}
