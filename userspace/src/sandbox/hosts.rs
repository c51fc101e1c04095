//! hosts(5) of a container.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr},
};

/// The lines that the file of every container has, as in Docker.
const STANDARD: &str = "127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::\tip6-localnet
ff00::\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
";

/// The names of a container: its host name, the host name without the domain, and the name that
/// Culvert knows it by.
pub fn names_of(hostname: &str, container: &str) -> Vec<String> {
    let short = hostname.split('.').next().unwrap_or(hostname);
    let mut names: Vec<String> = Vec::new();
    for name in [hostname, short, container] {
        if !name.is_empty() && !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    names
}

/// The file of a container with these names and addresses, and with `entries`, which come first:
/// the first line with a name counts.
pub fn hosts(names: &[String], addresses: &[IpAddr], entries: &[(String, IpAddr)]) -> String {
    let mut text = STANDARD.to_owned();
    for (name, address) in entries {
        line(&mut text, *address, name);
    }
    own(&mut text, names, addresses);
    text
}

/// The file `text` with these addresses in place of the container's earlier ones. Other lines are
/// kept: a program in the container may have added some.
pub fn readdressed(text: &str, names: &[String], addresses: &[IpAddr]) -> String {
    let mut kept = String::new();
    for line in text.lines() {
        let is_own = line.split_once('\t').is_some_and(|(_, rest)| rest == names.join(" "));
        // A container may be called localhost.
        if !is_own || STANDARD.lines().any(|standard| standard == line) {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    own(&mut kept, names, addresses);
    kept
}

/// Adds the lines of the container itself. Without a network, its names have the loopback address.
fn own(text: &mut String, names: &[String], addresses: &[IpAddr]) {
    let alone = [IpAddr::V4(Ipv4Addr::LOCALHOST)];
    let addresses = if addresses.is_empty() { alone.as_slice() } else { addresses };
    for address in addresses {
        line(text, *address, &names.join(" "));
    }
}

fn line(text: &mut String, address: IpAddr, names: &str) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "{address}\t{names}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_container_has_each_of_its_names_once() {
        assert_eq!(names_of("web", "web"), ["web"]);
        assert_eq!(names_of("www", "web"), ["www", "web"]);
        assert_eq!(names_of("www.example.com", "web"), ["www.example.com", "www", "web"]);
        assert_eq!(names_of("web.example.com", "web"), ["web.example.com", "web"]);
    }

    #[test]
    fn the_file_has_localhost_the_entries_and_the_container() {
        let names = names_of("www", "web");
        let entries = [("db".to_owned(), ip("10.0.0.9")), ("db".to_owned(), ip("fd00::9"))];
        let text = hosts(&names, &[ip("10.0.0.2"), ip("fd00::2")], &entries);
        assert!(text.starts_with("127.0.0.1\tlocalhost\n::1\tlocalhost "), "{text}");
        let own = "10.0.0.9\tdb\nfd00::9\tdb\n10.0.0.2\twww web\nfd00::2\twww web\n";
        assert!(text.ends_with(own), "{text}");
        assert!(hosts(&names, &[], &[]).ends_with("\n127.0.0.1\twww web\n"));
    }

    #[test]
    fn new_addresses_replace_the_old_ones_and_nothing_else() {
        let names = names_of("web", "web");
        let before = hosts(&names, &[ip("10.0.0.2")], &[("db".to_owned(), ip("10.0.0.9"))]);
        let edited = format!("{before}10.0.0.7\tmine web\n# web");
        let after = readdressed(&edited, &names, &[ip("10.0.0.2"), ip("10.1.0.2")]);
        assert_eq!(
            after,
            format!(
                "{STANDARD}10.0.0.9\tdb\n10.0.0.7\tmine web\n# web\n10.0.0.2\tweb\n10.1.0.2\tweb\n"
            )
        );
        let gone = readdressed(&after, &names, &[]);
        assert!(gone.ends_with("# web\n127.0.0.1\tweb\n"), "{gone}");
        assert_eq!(readdressed(&gone, &names, &[]), gone);
        let local = names_of("localhost", "localhost");
        let text = readdressed(&hosts(&local, &[], &[]), &local, &[ip("10.0.0.2")]);
        assert!(text.starts_with("127.0.0.1\tlocalhost\n"), "{text}");
    }
}
