//! Derives from the sections of a chain which lines were changed, removed, added or moved.

use super::Head;
use super::verify::{Finding, Place, Section, Strange, Why};

/// Adds the findings; `before` is a line that is known from elsewhere. Returns the first sequence number and the last line.
pub(super) fn report(
    sections: &[Section],
    at_end: &[Strange],
    before: Option<Head>,
    findings: &mut Vec<Finding>,
) -> Option<(u64, Head)> {
    let mut kept = heaviest(sections);
    let mut find = |place: Place, text: String| findings.push(Finding { place, text });
    for (at, section) in sections.iter().enumerate() {
        if kept.contains(&at) {
            continue;
        }
        let lines = lines(section.from, section.to.seq);
        let overlaps = |other: &usize| {
            let other = sections.get(*other);
            other.is_some_and(|it| it.from <= section.to.seq && section.from <= it.to.seq)
        };
        let twin = kept.iter().find(|other| overlaps(other));
        match twin.and_then(|twin| sections.get(*twin)) {
            Some(_) if section.begins() && at > 0 => find(
                section.first,
                "a chain begins anew: nothing shows which lines stood before it".to_owned(),
            ),
            Some(twin) if twin.begins() && twin.first > section.first => find(
                twin.first,
                "a chain begins anew: nothing shows which lines stood before it".to_owned(),
            ),
            Some(twin) => find(
                section.first,
                format!(
                    "{lines}: added: line {} of the chain stands elsewhere",
                    section.from.max(twin.from)
                ),
            ),
            None => {
                find(section.first, format!("{lines}: moved here"));
                kept.push(at);
            }
        }
    }
    kept.sort_by_key(|at| sections.get(*at).map_or(0, |section| section.from));
    let kept: Vec<&Section> = kept.iter().filter_map(|at| sections.get(*at)).collect();
    for pair in kept.windows(2) {
        let [before, section] = pair else { continue };
        join(before, section, &mut find);
    }
    // Lines that are not of the chain are reported with the gap before their section.
    let reported = |section: &&Section| kept.iter().skip(1).any(|it| std::ptr::eq(*it, *section));
    let unreported = sections.iter().filter(|section| !reported(section));
    for strange in unreported
        .flat_map(|section| &section.strange)
        .chain(at_end)
    {
        find(strange.place, describe(strange.why).to_owned());
    }
    let (first, last) = (kept.first()?, kept.last()?);
    let is_known = before.is_some_and(|before| before.is_before(first.from, first.prev));
    if !first.begins_file && !is_known && first.strange.is_empty() {
        find(
            first.first,
            format!(
                "a file does not begin with line {}, unless copytruncate or an earlier version made it: lines before it were \
                 taken out, or the file before is not given; --kept with its last line does in its place",
                first.from
            ),
        );
    }
    Some((first.from, last.to))
}

/// Reports what is wrong between two sections with ascending numbers.
fn join(before: &Section, section: &Section, find: &mut impl FnMut(Place, String)) {
    let (from, to) = (before.to.seq.saturating_add(1), section.from - 1);
    let missing = section.from.saturating_sub(from);
    let mut left = missing;
    for strange in &section.strange {
        if left > 0 {
            left -= 1;
            find(strange.place, "was changed".to_owned());
        } else {
            find(strange.place, describe(strange.why).to_owned());
        }
    }
    if missing == 0 && section.prev != before.to.hash {
        find(
            before.last,
            format!(
                "line {}: was changed: the next line has another hash for it",
                before.to.seq
            ),
        );
    } else if left == missing && missing > 0 {
        find(
            section.first,
            format!("{}: taken out before this line", lines(from, to)),
        );
    } else if left > 0 {
        find(
            section.first,
            format!("{left} of {}: taken out before this line", lines(from, to)),
        );
    }
}

fn describe(why: Why) -> &'static str {
    match why {
        Why::Form => "is no line of the chain: it was added, or changed",
        Why::Hash => "was changed, or written with another key: its hash is of something else",
        Why::Cut => {
            "is no whole line, and none after it tells of a cut: it was added, or the writer was cut off (crash, full disk) \
             and tells of it when it next starts or has space"
        }
        Why::NoKey => "was written without the key: nothing shows that it is true",
    }
}

pub(super) fn lines(from: u64, to: u64) -> String {
    if from == to {
        format!("line {from}")
    } else {
        format!("lines {from} to {to}")
    }
}

/// Finds the sections, in file order, with ascending numbers and the most lines in total. Sections outside of this
/// sequence were moved or added.
fn heaviest(sections: &[Section]) -> Vec<usize> {
    // For each section: the weight of the best sequence that ends with it, and its predecessor.
    let mut best: Vec<(u64, Option<usize>)> = Vec::with_capacity(sections.len());
    for section in sections {
        let before = best.iter().zip(sections).enumerate();
        let before = before.filter(|(_, (_, other))| other.to.seq < section.from);
        let before = before.max_by_key(|(_, ((weight, _), _))| *weight);
        let own = (section.to.seq - section.from).saturating_add(1);
        best.push(match before {
            None => (own, None),
            Some((at, ((weight, _), _))) => (weight.saturating_add(own), Some(at)),
        });
    }
    let last = (best.iter().enumerate()).max_by_key(|(_, (weight, _))| *weight);
    let mut next = last.map(|(at, _)| at);
    let mut kept = Vec::new();
    while let Some(at) = next {
        kept.push(at);
        next = best.get(at).and_then(|(_, before)| *before);
    }
    kept.reverse();
    kept
}
