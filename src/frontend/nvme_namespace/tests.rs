use super::*;

#[test]
fn identifiers_reach_spdk_as_bytes() {
    let spec = NvmeNamespaceSpec {
        volume_name_ref: "volumes/a".into(),
        host_nsid: 1,
        uuid: "1b4e28ba-2fa1-11d2-883f-b9a761bde3fb".into(),
        nguid: "1b4e28ba2fa111d2883fb9a761bde3fb".into(),
        eui64: 1_967_554_867_335_598_546,
    };
    let options = options(&spec);
    assert_eq!((options.bdev.as_str(), options.nsid), ("a", 1));
    assert_eq!(options.uuid, options.nguid);
    assert_eq!(options.uuid.unwrap()[..4], [0x1b, 0x4e, 0x28, 0xba]);
    assert_eq!(options.eui64, Some(0x1b4e_28ba_2fa1_11d2_u64.to_be_bytes()));
}

#[test]
fn a_namespace_without_a_known_nsid_is_found_by_its_bdev() {
    let namespaces = [(1, "a"), (7, "b")].map(|(nsid, bdev)| Namespace {
        nsid,
        bdev: bdev.to_owned(),
    });
    assert_eq!(nsid_with(&namespaces, "b"), Some(7));
    assert_eq!(nsid_with(&namespaces, "c"), None);
}

#[test]
fn another_form_of_the_same_name_is_no_change_to_hosts() {
    let of = |volume: &str, host_nsid| {
        options(&NvmeNamespaceSpec {
            volume_name_ref: volume.into(),
            host_nsid,
            ..Default::default()
        })
    };
    assert!(same(&of("volumes/a", 1), &of("nullVolumes/a", 1)));
    assert!(!same(&of("a", 1), &of("b", 1)));
    assert!(!same(&of("a", 1), &of("a", 2)));
    assert!(same(&of("a", 1), &of("a", 0)));
}
