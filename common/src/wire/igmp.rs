//! Types of IGMP messages (RFC 1112, RFC 2236, RFC 3376).

/// Membership query.
pub const QUERY: u8 = 0x11;
/// Membership report of version 1.
pub const REPORT_V1: u8 = 0x12;
/// Membership report of version 2.
pub const REPORT_V2: u8 = 0x16;
/// Leave group.
pub const LEAVE: u8 = 0x17;
/// Membership report of version 3.
pub const REPORT_V3: u8 = 0x22;
