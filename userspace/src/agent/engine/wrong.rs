//! What was found wrong with devices.

use std::collections::BTreeMap;

/// What was found wrong with devices that are being put right, on one line each. It is told when
/// that has succeeded.
#[derive(Debug, Default)]
pub(super) struct Wrong {
    /// Device pairs, by endpoint.
    pub(super) interfaces: BTreeMap<String, String>,
    /// Gateway devices, by VNI.
    pub(super) gateways: BTreeMap<u32, String>,
}
