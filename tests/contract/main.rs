//! The API's contract: rules that hold for every resource kind, tested on each of them.
//!
//! One target serves all tests concurrently; each test uses its own IDs. A test is named `Kind::rule`.

#[path = "../common/mod.rs"]
mod common;
mod create;
mod delete;
mod read;
mod unimplemented;
mod update;

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::ExitCode;

use common::kinds::{self, IMPLEMENTED, Kind, Lab, Place};
use common::{Client, Options, Resource, Target};
use libtest_mimic::{Arguments, Conclusion, Failed, Trial};

/// One rule of the contract.
pub struct Rule {
    /// The rule in words: the function's name.
    pub name: &'static str,
    run: fn(&Place) -> Pin<Box<dyn Future<Output = ()> + '_>>,
}

/// Builds the rules from their functions; a rule has the name of its function.
macro_rules! rules {
    ($($module:ident::$name:ident),* $(,)?) => {
        &[$(Rule { name: stringify!($name), run: |place| Box::pin($module::$name(place)) }),*]
    };
}

/// The rules that hold for every kind.
const RULES: &[Rule] = rules![
    create::create_returns_the_fields_and_the_name,
    create::get_and_list_agree_with_create,
    create::without_an_id_the_server_assigns_a_uuid,
    create::a_repeated_create_is_idempotent,
    create::a_create_with_different_content_already_exists,
    create::malformed_ids_are_rejected,
    create::valid_ids_are_accepted,
    create::the_object_is_required,
    create::each_required_field_is_required,
    create::output_only_fields_are_ignored_by_create,
    create::unknown_enum_numbers_are_rejected,
    create::the_parent_must_be_valid_and_exist,
    read::a_missing_object_is_not_found,
    read::malformed_names_are_rejected,
    read::an_object_is_found_by_every_form_of_its_name,
    read::pages_contain_every_object_once_in_order,
    read::pages_survive_inserts_and_deletes,
    read::an_invalid_page_token_is_rejected,
    read::a_negative_page_size_is_rejected,
    read::list_requires_a_parent_for_nested_kinds_only,
    read::stats_are_counters,
    update::a_mask_of_one_field_updates_only_that_field,
    update::without_a_mask_only_set_fields_are_updated,
    update::a_star_replaces_all_fields,
    update::a_star_without_a_required_field_is_rejected,
    update::unknown_mask_paths_are_rejected,
    update::an_update_without_changes_is_a_no_op,
    update::immutable_fields_are_rejected_and_unchanged,
    update::an_update_of_a_missing_object_is_not_found,
    update::allow_missing_creates,
    update::the_object_and_its_name_are_required,
    update::output_only_fields_in_a_mask_are_ignored,
    delete::a_deleted_object_is_gone_and_its_id_free,
    delete::deleting_a_missing_object_is_not_found_unless_allow_missing,
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    if arguments.list {
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let lab = Lab {
            target: nowhere,
            peer: nowhere,
            dir: PathBuf::new(),
        };
        return libtest_mimic::run(&arguments, trials(&lab)).exit_code();
    }
    let target = block_on(Target::start_with(Options::hugepages()));
    let peer = block_on(Target::start_with(Options::default().beside(&target)));
    let lab = Lab {
        target: target.grpc,
        peer: peer.grpc,
        dir: target.scratch().to_owned(),
    };
    let conclusion = libtest_mimic::run(&arguments, trials(&lab));
    if conclusion.has_failed() {
        eprintln!("--- log of the target ---\n{}", target.log());
        eprintln!("--- log of the peer ---\n{}", peer.log());
    } else {
        block_on(check_nothing_left(&target));
    }
    target.stop();
    peer.stop();
    exit_code(&conclusion)
}

fn trials(lab: &Lab) -> Vec<Trial> {
    let target = lab.target;
    let mut trials = Vec::new();
    for kind in IMPLEMENTED {
        for (number, rule) in RULES.iter().enumerate() {
            let (lab, tag) = (
                lab.clone(),
                format!("{}{number}", kind.message.to_lowercase()),
            );
            let name = format!("{}::{}", kind.message, rule.name);
            trials.push(trial(name, move || block_on(hold(lab, kind, rule, tag))));
        }
    }
    for message in kinds::UNIMPLEMENTED {
        let name = format!("{message}::every_verb_returns_unimplemented");
        let run = async move || {
            unimplemented::every_verb_returns_unimplemented(&connect(target).await, message).await
        };
        trials.push(trial(name, move || block_on(run())));
    }
    trials.push(trial(
        "every_kind_of_the_api_is_in_one_of_the_tables".into(),
        unimplemented::every_kind_of_the_api_is_in_one_of_the_tables,
    ));
    trials.push(trial(
        "NullVolume::a_page_has_50_objects_by_default_and_250_at_most".into(),
        move || {
            block_on(async {
                read::a_page_has_50_objects_by_default_and_250_at_most(&connect(target).await).await
            })
        },
    ));
    trials.push(trial(
        "NvmeSubsystem::objects_in_use_are_not_deleted_and_the_error_names_the_user".into(),
        move || {
            block_on(async {
                delete::objects_in_use_are_not_deleted_and_the_error_names_the_user(
                    &connect(target).await,
                )
                .await
            })
        },
    ));
    trials
}

async fn hold(lab: Lab, kind: &'static Kind, rule: &Rule, tag: String) {
    let place = Place::new(lab, kind, &tag).await;
    (rule.run)(&place).await;
    place.clean().await;
}

async fn connect(target: SocketAddr) -> Client {
    Client::connect(target)
        .await
        .expect("the target accepts connections")
}

/// Asserts that the target has no objects left: all tests passed and deleted theirs.
async fn check_nothing_left(target: &Target) {
    let client = target.client().await;
    for kind in IMPLEMENTED {
        let message = kind.message;
        if Resource::new(&client, message).nested {
            continue;
        }
        let left = Resource::new(&client, message).names("").await;
        assert!(
            left.is_empty(),
            "{message} objects left after all tests: {left:?}"
        );
    }
}

fn trial(name: String, run: impl FnOnce() + Send + 'static) -> Trial {
    Trial::test(name, move || {
        run();
        Ok::<(), Failed>(())
    })
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(future)
}

fn exit_code(conclusion: &Conclusion) -> ExitCode {
    if conclusion.has_failed() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
