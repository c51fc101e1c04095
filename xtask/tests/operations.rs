//! The files that `docs/OPERATIONS.md` shows are those of `packaging/`, and the tests that it and
//! `docs/SECURITY.md` name exist.

#![expect(clippy::unwrap_used, reason = "a file that cannot be read fails the test with the error")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Path on a host, and path below `packaging/`.
const FILES: [(&str, &str); 6] = [
    ("/etc/systemd/system/culvert.service", "systemd/culvert.service"),
    ("/etc/systemd/system/culvert.service.d/strict.conf", "systemd/culvert.service.d/strict.conf"),
    ("/etc/systemd/network/05-culvert.network", "networkd/05-culvert.network"),
    ("/etc/NetworkManager/conf.d/culvert.conf", "NetworkManager/culvert.conf"),
    ("/etc/fail2ban/action.d/culvert.conf", "fail2ban/action.d/culvert.conf"),
    ("/etc/fail2ban/jail.d/web.conf", "fail2ban/jail.d/web.conf"),
];

/// Systems that must have a row in the table of other systems.
const SYSTEMS: [&str; 8] = [
    "Docker",
    "kube-proxy",
    "libvirt",
    "ufw",
    "firewalld",
    "NetworkManager",
    "systemd-networkd",
    "VPNs",
];

/// The root of the repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The page.
fn page() -> String {
    fs::read_to_string(root().join("docs/OPERATIONS.md")).unwrap()
}

/// The files that a page in Markdown shows: path on a host, and content. Such a block has the path
/// in a comment in its first line.
fn shown(page: &str) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if !line.starts_with("```") {
            continue;
        }
        let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        let Some((first, content)) = block.split_first() else { continue };
        let Some(path) = first.strip_prefix("# ").filter(|path| path.starts_with('/')) else {
            continue;
        };
        let content = content.iter().map(|line| format!("{line}\n")).collect();
        let other = files.insert(path.to_owned(), content);
        assert_eq!(other, None, "{path}: shown twice");
    }
    files
}

/// The files below `dir`: path from `base`, and content.
fn below(base: &Path, dir: &Path, files: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            below(base, &path, files);
        } else {
            let name = path.strip_prefix(base).unwrap().to_str().unwrap().to_owned();
            files.insert(name, fs::read_to_string(&path).unwrap());
        }
    }
}

/// Each file that the page shows is a file of `packaging/` with the same content, and the page shows
/// each file of `packaging/`.
#[test]
fn the_page_shows_the_files() {
    let shown = shown(&page());
    let base = root().join("packaging");
    let mut kept = BTreeMap::new();
    below(&base, &base, &mut kept);
    let paths: BTreeMap<&str, &str> = FILES.into_iter().map(|(path, file)| (file, path)).collect();
    let installed: BTreeMap<String, String> = kept
        .into_iter()
        .map(|(file, content)| {
            let path = paths.get(file.as_str()).copied();
            (path.map_or(format!("packaging/{file}: not in FILES"), str::to_owned), content)
        })
        .collect();
    assert_eq!(installed, shown);
    assert_eq!(installed.len(), FILES.len());
}

/// Only a block that begins with the path of a file is a file.
#[test]
fn files_are_found_in_a_page() {
    let page = "text\n```sh\n# a comment\nls\n```\n\n```ini\n# /etc/a b.conf\n[x]\n\n# y\n```\n# /etc/c\n```ini\n```\n";
    let found = shown(page);
    let expected = [("/etc/a b.conf".to_owned(), "[x]\n\n# y\n".to_owned())];
    assert_eq!(found, BTreeMap::from(expected));
}

/// Each row of the table of other systems names a test, and each test that the page names is a
/// function of the file to which the link leads.
#[test]
fn the_page_names_tests_that_exist() {
    let page = page();
    let (_, section) = page.split_once("\n## Beside other systems\n").unwrap();
    let rows: Vec<&str> = section
        .lines()
        .skip_while(|line| !line.starts_with("|---"))
        .skip(1)
        .take_while(|line| line.starts_with('|'))
        .collect();
    for system in SYSTEMS {
        let is_it = |row: &&str| row.split('|').nth(1).is_some_and(|cell| cell.contains(system));
        assert!(rows.iter().any(is_it), "{system}: no row");
    }
    for row in rows {
        assert!(row.contains("](../tests/"), "no test: {row}");
    }
    let links = page.match_indices("`](../tests/");
    for (at, begin) in links {
        let name = page[..at].rsplit('`').next().unwrap();
        let (file, _) = page[at + begin.len()..].split_once(')').unwrap();
        let code = fs::read_to_string(root().join("tests").join(file)).unwrap();
        assert!(code.contains(&format!("\nfn {name}() {{\n")), "{file}: no test '{name}'");
    }
}

/// Each test that the page about security names is a function of the file to which the link leads.
#[test]
fn the_page_about_security_names_tests_that_exist() {
    let page = fs::read_to_string(root().join("docs/SECURITY.md")).unwrap();
    let links: Vec<_> = page.match_indices("`](../").collect();
    assert!(links.len() > 10, "{}", links.len());
    for (at, begin) in links {
        let name = page[..at].rsplit('`').next().unwrap();
        let (file, _) = page[at + begin.len()..].split_once(')').unwrap();
        let code = fs::read_to_string(root().join(file)).unwrap();
        let has = |head: &str| code.contains(&format!("fn {name}({head}"));
        // A test of a BPF program gets the kernel in which it runs.
        assert!(has(") {\n") || has("lab: &mut Lab) {\n"), "{file}: no test '{name}'");
    }
}
