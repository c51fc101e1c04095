//! What was found wrong with devices.

use std::collections::BTreeMap;

/// What was found wrong with devices that are being repaired, on one line each. The line is logged
/// and counted when the repair has succeeded.
#[derive(Debug, Default)]
pub(super) struct Wrong {
    /// Device pairs, by endpoint.
    pub(super) interfaces: BTreeMap<String, String>,
    /// Gateway devices, by VNI.
    pub(super) gateways: BTreeMap<u32, String>,
}
