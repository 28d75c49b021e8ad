//! The protocol as designed holds in every state of every world.

mod worlds;

use std::time::Instant;

use pagefence_fs_model::write_protocol::{Scenario, check};

fn holds(scenarios: Vec<Scenario>) {
    let mut states = 0;
    let (mut saw_enospc, mut saw_full_journal) = (false, false);
    let mut violated = Vec::new();
    for scenario in scenarios {
        let name = scenario.name;
        let start = Instant::now();
        let outcome = check(scenario);
        println!(
            "{name}: {} states, depth {}, {:.1} s",
            outcome.states,
            outcome.depth,
            start.elapsed().as_secs_f32()
        );
        states += outcome.states;
        saw_enospc |= outcome.saw_enospc;
        saw_full_journal |= outcome.saw_full_journal;
        for (property, run) in outcome.violated {
            println!("  VIOLATED {property}: {run}");
            violated.push((name, property));
        }
    }
    println!("all: {states} states");
    assert_eq!(violated, []);
    assert!(saw_enospc && saw_full_journal, "the worlds are too wide");
}

fn worlds() -> Vec<Scenario> {
    vec![
        worlds::reuse(),
        worlds::full_journal(),
        worlds::split(),
        worlds::pieces(),
        worlds::shrink(),
        worlds::revoke(),
        worlds::checkpoint(),
        worlds::one_page(),
        worlds::reclaim(),
        worlds::edge(),
        worlds::fence(),
    ]
}

#[test]
fn a_new_handle_at_completion_is_enough() {
    holds(worlds());
}

/// Credits reserved under the page locks work as well; nothing needs them.
#[test]
fn reserved_credits_hold_too() {
    holds(
        worlds()
            .into_iter()
            .map(Scenario::with_reserved_credits)
            .collect(),
    );
}
