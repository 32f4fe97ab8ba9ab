//! Cost of observability for a Create: with everything and with each feature alone, each on a target of its own,
//! compared with none in the same turn.

use std::fmt::Write;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::report::line;
use crate::settings::Settings;
use crate::sight::{Parts, TURNS, Watched, collector};
use crate::stats::Rounds;

/// Time of a Create at p50 with some features, in microseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Creates {
    pub with: &'static str,
    pub p50_us: Rounds,
    /// Additional to that without any, per turn.
    pub extra_us: Rounds,
}

/// The name of the row with everything.
pub const ALL: &str = "everything";

/// Formats a table.
pub fn table(creates: &[Creates], out: &mut String) {
    line(
        out,
        format_args!(
            "### A Create, state in memory, at p50\n\n| with | µs | beside nothing, turn by turn |"
        ),
    );
    line(out, format_args!("|---|---:|---:|"));
    for of in creates {
        let Rounds {
            median, min, max, ..
        } = of.extra_us;
        let _ = writeln!(
            out,
            "| {} | {:.1} | {median:+.1} ({min:+.1} to {max:+.1}) |",
            of.with, of.p50_us.median
        );
    }
    line(out, format_args!(""));
}

pub async fn run(settings: &Settings) -> Result<Vec<Creates>> {
    let collector = collector().await?;
    let mut sides = vec![("nothing", Parts::default()), (ALL, Parts::all(collector))];
    sides.extend(Parts::each(collector));
    let mut found = vec![Vec::new(); sides.len()];
    let turns = settings.line.rounds * TURNS;
    for turn in 0..turns {
        eprintln!("creates: turn {} of {turns}", turn + 1);
        let order: Vec<usize> = match turn % 2 {
            0 => (0..sides.len()).collect(),
            _ => (0..sides.len()).rev().collect(),
        };
        for side in order {
            let (name, parts) = sides[side];
            found[side].push(creates(settings, parts).await.context(name)?);
        }
    }
    let nothing = found[0].clone();
    let of = sides.into_iter().zip(found).map(|((with, _), p50_us)| {
        let extra = p50_us.iter().zip(&nothing).map(|(with, none)| with - none);
        Ok(Creates {
            with,
            extra_us: Rounds::of(extra.collect()).context("no turns")?,
            p50_us: Rounds::of(p50_us).context("no turns")?,
        })
    });
    of.collect()
}

/// Median time of creates on a separate target, in microseconds.
async fn creates(settings: &Settings, parts: Parts) -> Result<f64> {
    let mut side = Watched::start(settings, parts).await?;
    let median = side.creates().await?;
    side.stop().await?;
    Ok(median)
}
