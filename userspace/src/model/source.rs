//! Addresses of clients of published ports.

use ipnetwork::{IpNetwork, Ipv4Network};

use super::Invalid;

/// Parses the clients that an option or argument names: an address as in `192.0.2.7`, or a prefix
/// as in `192.0.2.0/24`, of either family.
///
/// # Errors
///
/// One line: the text is malformed, or has bits set beyond its prefix.
pub fn parse_source(text: &str) -> Result<IpNetwork, Invalid> {
    // The library also takes a netmask behind the slash.
    let prefix = text.split_once('/').is_none_or(|(_, bits)| bits.parse::<u8>().is_ok());
    let Some(source) = prefix.then(|| text.parse::<IpNetwork>().ok()).flatten() else {
        return Err(Invalid(format!(
            "source '{text}' is malformed: an address or prefix as in 192.0.2.7 or 192.0.2.0/24 is valid"
        )));
    };
    if source.ip() != source.network() {
        return Err(Invalid(format!(
            "source '{text}' has bits set beyond its prefix: {}/{} is valid",
            source.network(),
            source.prefix()
        )));
    }
    Ok(source)
}

/// The clients as an IPv4 prefix, the form that the programs read.
///
/// # Errors
///
/// One line: the clients are IPv6, but published ports are IPv4 only.
pub fn ipv4_source(source: IpNetwork) -> Result<Ipv4Network, Invalid> {
    match source {
        IpNetwork::V4(source) => {
            // Bits beyond the prefix, which only another program than the CLI sends, are cleared.
            Ok(Ipv4Network::new(source.network(), source.prefix()).unwrap_or(source))
        }
        IpNetwork::V6(source) => Err(Invalid(format!(
            "source {source} is IPv6, and published ports are IPv4 only: an address or prefix as in 192.0.2.0/24 is valid"
        ))),
    }
}

/// The clients as text: an address without the length of a prefix.
pub fn spell_source(source: Ipv4Network) -> String {
    match source.prefix() {
        32 => source.ip().to_string(),
        _ => source.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_and_prefixes_are_sources() {
        for (text, spelled) in [
            ("192.0.2.7", "192.0.2.7"),
            ("192.0.2.7/32", "192.0.2.7"),
            ("192.0.2.0/24", "192.0.2.0/24"),
            ("0.0.0.0/0", "0.0.0.0/0"),
        ] {
            assert_eq!(spell_source(ipv4_source(parse_source(text).unwrap()).unwrap()), spelled);
        }
    }

    #[test]
    fn everything_else_is_refused_in_one_line_with_what_would_be_right() {
        for (text, part) in [
            ("", "malformed"),
            ("host", "malformed"),
            ("192.0.2", "malformed"),
            ("192.0.2.0/33", "malformed"),
            ("192.0.2.0/255.255.255.0", "malformed"),
            ("192.0.2.0/", "malformed"),
            ("192.0.2.7 ", "malformed"),
            ("192.0.2.7/24", "beyond its prefix: 192.0.2.0/24 is valid"),
            ("2001:db8::1/32", "beyond its prefix: 2001:db8::/32 is valid"),
            ("2001:db8::/32", "source 2001:db8::/32 is IPv6"),
            ("2001:db8::1", "source 2001:db8::1/128 is IPv6"),
        ] {
            let line = parse_source(text).and_then(ipv4_source).unwrap_err().to_string();
            assert!(line.contains(part) && line.ends_with("is valid"), "{line}");
            assert_eq!(line.lines().count(), 1, "{line}");
        }
    }

    proptest! {
        #[test]
        fn what_is_spelled_is_parsed_back(ip: u32, bits in 0..=32_u8) {
            let ip = Ipv4Network::new(ip.into(), bits).unwrap();
            let source = ipv4_source(IpNetwork::V4(ip)).unwrap();
            prop_assert_eq!(source.ip(), source.network());
            prop_assert_eq!(parse_source(&spell_source(source)), Ok(IpNetwork::V4(source)));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "[0-9a-f.:/]{0,30}|.{0,30}") {
            let _ = parse_source(&text).and_then(ipv4_source);
        }
    }
}
