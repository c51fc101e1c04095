//! Names of functions for people.

use culvert_bpf_build::PACKAGE;

/// A short form of a symbol: its path without the crate of the programs, and the values of its
/// constant parameters, such as `act::flood::remote<3, false>`. A symbol that is not mangled
/// remains as it is.
///
/// This is no demangler: it takes the identifiers of the symbol in their order, and leaves out what
/// the symbol says about them. The types of an `impl` become a part of the path.
pub(super) fn short(symbol: &str) -> String {
    let Some(mangled) = symbol.strip_prefix("_R") else {
        return symbol.to_owned();
    };
    match parts(mangled) {
        Some((path, values)) if values.is_empty() => path.join("::"),
        Some((path, values)) => format!("{}<{}>", path.join("::"), values.join(", ")),
        None => symbol.to_owned(),
    }
}

/// The identifiers of a symbol in Rust's mangling, version 0 (RFC 2603), and its constants. None
/// if there are no identifiers, or a part of the symbol has no end.
fn parts(mangled: &str) -> Option<(Vec<String>, Vec<String>)> {
    let own = PACKAGE.replace('-', "_");
    let (mut path, mut values) = (Vec::new(), Vec::new());
    let mut rest = mangled;
    while let Some(tag) = rest.chars().next() {
        let after = rest.get(tag.len_utf8()..)?;
        rest = match tag {
            '0' => {
                path.push("{closure}".to_owned());
                after
            }
            '1'..='9' => {
                let end = rest.find(|c: char| !c.is_ascii_digit())?;
                let length: usize = rest.get(..end)?.parse().ok()?;
                let text = rest.get(end..)?;
                // The separator of a length from an identifier that begins with a digit or '_'.
                let text = text.strip_prefix('_').unwrap_or(text);
                let identifier = text.get(..length)?;
                if identifier != own {
                    path.push(identifier.to_owned());
                }
                text.get(length..)?
            }
            // The crate's hash, the number of a closure, or a path that was there before.
            's' | 'B' => after.split_once('_')?.1,
            'K' => {
                let (value, after) = after.split_once('_')?;
                values.push(constant(value)?);
                after
            }
            // What follows the last one is the crate that has the copy of a generic function.
            'E' if after.is_empty() || after.starts_with(['B', 'C']) => break,
            _ => after,
        };
    }
    (!path.is_empty()).then_some((path, values))
}

/// The value of a constant: a letter for its type, `n` if it is negative, and hexadecimal digits.
fn constant(text: &str) -> Option<String> {
    let mut letters = text.chars();
    let kind = letters.next()?;
    let digits = letters.as_str();
    let (sign, digits) = digits.strip_prefix('n').map_or(("", digits), |digits| ("-", digits));
    let value = u128::from_str_radix(digits, 16).ok()?;
    Some(match (kind, value) {
        ('b', 0) => "false".to_owned(),
        ('b', _) => "true".to_owned(),
        _ => format!("{sign}{value}"),
    })
}

#[cfg(test)]
mod tests {
    use super::short;

    #[test]
    fn a_mangled_name_becomes_its_path() {
        for (symbol, expected) in [
            ("from_underlay", "from_underlay"),
            (
                "_RNvNtNtCs27agf2UeNfM_12culvert_ebpf5state5flows10try_insert",
                "state::flows::try_insert",
            ),
            (
                "_RNCNvNtCs27agf2UeNfM_12culvert_ebpf7verdict6finish0B5_",
                "verdict::finish::{closure}",
            ),
            (
                "_RNCNvNtCs27agf2UeNfM_12culvert_ebpf7verdict6finishs_0B5_",
                "verdict::finish::{closure}",
            ),
            (
                "_RINvNtNtCs27agf2UeNfM_12culvert_ebpf3act5flood6remoteKh3_Kb0_EB6_",
                "act::flood::remote<3, false>",
            ),
            (
                "_RINvMNtNtCs2WwYghyIjn4_14culvert_common4wire8checksumNtB3_3Sum9add_bytesKj10_E\
                 Cs27agf2UeNfM_12culvert_ebpf",
                "culvert_common::wire::checksum::Sum::add_bytes<16>",
            ),
            ("_RNvCs1_4main4__foo", "main::_foo"),
        ] {
            assert_eq!(short(symbol), expected, "{symbol}");
        }
    }

    #[test]
    fn a_name_that_cannot_be_read_remains() {
        for symbol in ["_R", "_RNv", "_RNv99x", "_RNvCs27agf", "_RNv5", "_RNv3ö", "_RNv1xKh"] {
            assert_eq!(short(symbol), symbol);
        }
    }
}
