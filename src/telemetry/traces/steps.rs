//! Spans of what SPDK's app thread did for a call.

use std::time::Duration;

use opentelemetry::KeyValue;
use spdk::Timeline;

use super::{is_traced, record};

/// Receives the timeline of each call of the data path.
pub(super) struct Steps;

impl spdk::Observer for Steps {
    fn wants(&self) -> bool {
        is_traced()
    }

    fn answered(&self, timeline: &Timeline) {
        let at = |since: Duration| timeline.asked + since;
        let steps = &timeline.steps;
        let (Some((first, _)), Some((_, last))) = (steps.first(), steps.last()) else {
            return;
        };
        record(
            "mailbox wait".into(),
            at(Duration::ZERO),
            at(*first),
            vec![],
        );
        let name = format!("step {}", recipe(timeline.recipe));
        for (begun, ended) in steps {
            record(name.clone().into(), at(*begun), at(*ended), vec![]);
        }
        if timeline.left_out > 0 {
            let number = KeyValue::new("opi_spdk.steps", i64::from(timeline.left_out));
            record(
                "more steps".into(),
                at(*last),
                at(timeline.ended),
                vec![number],
            );
        }
    }
}

/// Shortens `opi_spdk::backend::null_volume::<impl ...>::make::{{closure}}::{{closure}}` to its telling part.
pub(in crate::telemetry) fn recipe(name: &str) -> &str {
    let mut name = name;
    while let Some(shorter) = name.strip_suffix("::{{closure}}") {
        name = shorter;
    }
    name.strip_prefix("opi_spdk::").unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_goes_by_the_function_that_it_stands_in() {
        let name = "opi_spdk::backend::null_volume::make::{{closure}}::{{closure}}";
        assert_eq!(recipe(name), "backend::null_volume::make");
        assert_eq!(recipe("other"), "other");
    }
}
