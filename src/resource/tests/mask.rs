//! Property tests of update masks against AIP-134, with random objects, masks and changes.

use proptest::prelude::*;
use prost_reflect::{DynamicMessage, ReflectMessage};

use super::super::mask::{Changes, Mask};
use super::super::rules::{Rules, rules_of};
use crate::api::storage::{
    FabricsEndpoint, NvmeController, NvmeControllerSpec, PciEndpoint,
    nvme_controller_spec::Endpoint,
};
use crate::state::sim::cases;

fn text() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), "[ab]"]
}

fn endpoint() -> impl Strategy<Value = Option<Endpoint>> {
    let number = || prop::option::of(0..2_i32);
    let pcie = (number(), number()).prop_map(|(port_id, physical_function)| {
        Endpoint::PcieId(PciEndpoint {
            port_id,
            physical_function,
            ..Default::default()
        })
    });
    let fabrics = (text(), text()).prop_map(|(traddr, trsvcid)| {
        Endpoint::FabricsId(FabricsEndpoint {
            traddr,
            trsvcid,
            ..Default::default()
        })
    });
    prop_oneof![1 => Just(None), 2 => pcie.prop_map(Some), 2 => fabrics.prop_map(Some)]
}

/// A message with nested messages, a oneof, wrappers and output-only fields.
fn controller() -> impl Strategy<Value = NvmeController> {
    let spec = (prop::option::of(0..2_i32), 0..2_i32, endpoint());
    let spec = spec.prop_map(
        |(nvme_controller_id, max_nsq, endpoint)| NvmeControllerSpec {
            nvme_controller_id,
            max_nsq,
            endpoint,
            ..Default::default()
        },
    );
    (text(), prop::option::of(spec)).prop_map(|(name, spec)| NvmeController {
        name,
        spec,
        ..Default::default()
    })
}

/// Collects all paths, output-only fields included.
fn paths_of(rules: &Rules, prefix: &str, into: &mut Vec<String>) {
    for field in rules.fields() {
        let path = format!("{prefix}{}", field.descriptor.name());
        into.push(path.clone());
        if let Some(nested) = &field.nested {
            paths_of(nested, &format!("{path}."), into);
        }
    }
}

fn mask() -> impl Strategy<Value = Vec<String>> {
    let mut all = Vec::new();
    paths_of(&rules_of::<NvmeController>(), "", &mut all);
    let some = prop::collection::vec(prop::sample::select(all), 1..4);
    prop_oneof![1 => Just(Vec::new()), 1 => Just(vec!["*".to_owned()]), 4 => some]
}

/// Returns the value at a path, unless a parent message is missing.
fn at(message: &DynamicMessage, path: &str) -> Option<prost_reflect::Value> {
    let (first, rest) = path.split_once('.').unwrap_or((path, ""));
    let field = message.descriptor().get_field_by_name(first)?;
    let value = message
        .has_field(&field)
        .then(|| message.get_field(&field))?;
    match rest {
        "" => Some(value.into_owned()),
        rest => at(value.as_message()?, rest),
    }
}

/// Whether the mask covers the leaf at `path`.
fn names(mask: &[String], path: &str) -> bool {
    let inside = |outer: &str| path == outer || path.starts_with(&format!("{outer}."));
    mask.iter().any(|named| named == "*" || inside(named))
}

/// Whether the server alone sets the field.
fn is_server_side(path: &str) -> bool {
    path == "name" || path == "status" || path.starts_with("status.")
}

/// Members of the oneof: setting one clears the other.
const MEMBERS: [&str; 2] = ["spec.pcie_id", "spec.fabrics_id"];

fn member(path: &str) -> Option<usize> {
    MEMBERS.iter().position(|member| path.starts_with(member))
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn an_update_changes_what_its_mask_names_and_nothing_else(
        old in controller(), new in controller(), mask in mask()
    ) {
        let rules = rules_of::<NvmeController>();
        let parsed = Mask::parse(Some(&mask), &rules).unwrap();
        let (before, sent) = (old.transcode_to_dynamic(), new.transcode_to_dynamic());
        let mut after = before.clone();
        parsed.apply(&rules, &mut after, &sent);

        let mut leaves = Vec::new();
        paths_of(&rules, "", &mut leaves);
        let is_message = |path: &String| leaves.iter().any(|other| other.starts_with(&format!("{path}.")));
        for path in leaves.iter().filter(|path| !is_message(path)) {
            let [was, told, is] = [&before, &sent, &after].map(|message| at(message, path));
            let counts = match mask.as_slice() {
                [] => told.is_some(),
                named => names(named, path),
            };
            // Setting another member of the oneof clears this one.
            let displaced = member(path).is_some_and(|own| at(&after, MEMBERS[1 - own]).is_some());
            let expected = if is_server_side(path) {
                was
            } else if displaced {
                None
            } else if counts {
                told
            } else {
                was
            };
            prop_assert_eq!(is, expected, "{} of {:?}", path, mask);
        }

        // Updates are idempotent.
        let mut again = after.clone();
        parsed.apply(&rules, &mut again, &sent);
        prop_assert_eq!(&again, &after);

        // The changed paths alone transform the old object into the new one.
        let changes = Changes::between(&rules, &before, &after);
        prop_assert_eq!(changes.is_empty(), before == after);
        let mut rebuilt = before.clone();
        changes.apply(&rules, &mut rebuilt, &after);
        prop_assert_eq!(&rebuilt, &after);
        let all: Vec<&str> = changes.paths().iter().map(String::as_str).collect();
        prop_assert!(changes.only(&all) && all.iter().all(|path| changes.has(path)));
    }

    #[test]
    fn a_mask_with_a_path_that_does_not_exist_is_refused_whole(
        good in mask(), bad in "[a-z.]{1,12}", at in any::<prop::sample::Index>()
    ) {
        let rules = rules_of::<NvmeController>();
        let mut all = Vec::new();
        paths_of(&rules, "", &mut all);
        prop_assume!(!all.contains(&bad));
        let mut mask = good;
        let place = at.index(mask.len() + 1);
        mask.insert(place, bad);
        prop_assert!(Mask::parse(Some(&mask), &rules).is_err());
    }
}
