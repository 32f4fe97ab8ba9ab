//! The table of methods and the least role of each, which repeats no rule of the program.

use std::collections::BTreeMap;

use super::methods;

const TABLE: &str = include_str!("../data/roles.tsv");

const ROLES: [&str; 3] = ["viewer", "operator", "admin"];

fn rank(role: &str) -> usize {
    let found = ROLES.iter().position(|known| *known == role);
    found.unwrap_or_else(|| panic!("{role} is no role"))
}

/// The methods, each with its least role.
fn table() -> BTreeMap<&'static str, &'static str> {
    let lines = TABLE.lines().filter(|line| !line.starts_with('#'));
    let rows = lines.map(|line| line.split_once('\t').unwrap_or_else(|| panic!("{line}")));
    rows.collect()
}

/// Returns whether a role may call a method, with an empty request.
pub fn may(role: &str, method: &str) -> bool {
    let table = table();
    let least = table
        .get(method)
        .unwrap_or_else(|| panic!("tests/data/roles.tsv lacks {method}: decide its least role"));
    rank(role) >= rank(least)
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
