//! The table of methods, the least role of each and what a prefix leaves of it, which repeats no rule of the program.

use std::collections::BTreeMap;

use super::methods;

const TABLE: &str = include_str!("../data/roles.tsv");

const ROLES: [&str; 3] = ["viewer", "operator", "admin"];

fn rank(role: &str) -> usize {
    let found = ROLES.iter().position(|known| *known == role);
    found.unwrap_or_else(|| panic!("{role} is no role"))
}

/// What a grant with a prefix reaches of a method.
pub enum Reach {
    /// Calls about objects of the prefix.
    Own,
    /// A list, of the objects of the prefix, of a parent of the prefix or of all parents.
    Listed,
    /// Nothing: the method is about all objects, or about what belongs to no tenant.
    All,
}

/// The methods, each with its least role and its reach.
fn table() -> BTreeMap<&'static str, (&'static str, &'static str)> {
    let lines = TABLE.lines().filter(|line| !line.starts_with('#'));
    let rows = lines.map(|line| {
        let mut parts = line.split('\t');
        let mut next = || parts.next().unwrap_or_else(|| panic!("{line}"));
        (next(), (next(), next()))
    });
    rows.collect()
}

fn row(method: &str) -> (&'static str, &'static str) {
    let table = table();
    let row = table.get(method);
    *row.unwrap_or_else(|| panic!("tests/data/roles.tsv lacks {method}: decide its least role"))
}

/// Returns whether a role may call a method, with an empty request.
pub fn may(role: &str, method: &str) -> bool {
    let (least, _) = row(method);
    rank(role) >= rank(least)
}

/// Returns what a grant with a prefix reaches of a method.
pub fn reach(method: &str) -> Reach {
    match row(method).1 {
        "own" => Reach::Own,
        "listed" => Reach::Listed,
        "all" => Reach::All,
        other => panic!("{method}: {other}"),
    }
}

#[test]
fn the_table_has_each_method_once_and_no_other() {
    let known = methods();
    let mut known: Vec<&str> = known.iter().map(|method| method.name()).collect();
    known.sort_unstable();
    let listed: Vec<&str> = table().into_keys().collect();
    assert_eq!(listed, known);
    let rows = TABLE.lines().filter(|line| !line.starts_with('#')).count();
    assert_eq!(rows, known.len(), "a method stands there twice");
}
