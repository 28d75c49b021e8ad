//! Medians in columns, ratios beside them.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Which of two figures is the better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Better {
    Less,
    More,
}

struct Row {
    name: String,
    better: Better,
    samples: BTreeMap<&'static str, Vec<f64>>,
}

/// Samples by row and system.
pub(crate) struct Table {
    systems: Vec<&'static str>,
    rows: Vec<Row>,
}

impl Table {
    /// An empty one; the ratios are those of the first system to each other one.
    pub(crate) fn new(systems: Vec<&'static str>) -> Self {
        Self {
            systems,
            rows: Vec::new(),
        }
    }

    /// Adds a sample. Rows keep the order in which they were first met.
    pub(crate) fn record(&mut self, row: &str, better: Better, system: &'static str, sample: f64) {
        let at = self.rows.iter().position(|known| known.name == row);
        let at = at.unwrap_or_else(|| {
            self.rows.push(Row {
                name: row.to_owned(),
                better,
                samples: BTreeMap::new(),
            });
            self.rows.len() - 1
        });
        self.rows[at]
            .samples
            .entry(system)
            .or_default()
            .push(sample);
    }

    /// The median of a row's samples of one system, if there are any.
    pub(crate) fn median(&self, row: &str, system: &str) -> Option<f64> {
        let row = self.rows.iter().find(|known| known.name == row)?;
        median(row.samples.get(system)?)
    }

    /// A Markdown table. A ratio over 1 says that the first system is the better one.
    pub(crate) fn render(&self) -> String {
        let mut text = String::from("| |");
        let (first, others) = self.systems.split_at(1);
        for system in &self.systems {
            let _ = write!(text, " {system} |");
        }
        for other in others {
            let _ = write!(text, " times {other} |");
        }
        text.push_str("\n|---|");
        text.push_str(&"---:|".repeat(self.systems.len() + others.len()));
        for row in &self.rows {
            let _ = write!(text, "\n| {} |", row.name);
            let of = |system: &str| row.samples.get(system).and_then(|all| median(all));
            for system in &self.systems {
                match of(system) {
                    Some(value) => {
                        let _ = write!(text, " {} |", significant(value));
                    }
                    None => text.push_str(" – |"),
                }
            }
            let ours = first.first().and_then(|&system| of(system));
            for &other in others {
                match (ours, of(other)) {
                    (Some(ours), Some(theirs)) => {
                        let ratio = match row.better {
                            Better::More => ours / theirs,
                            Better::Less => theirs / ours,
                        };
                        let _ = write!(text, " {ratio:.2} |");
                    }
                    _ => text.push_str(" – |"),
                }
            }
        }
        text
    }
}

fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    Some((sorted[middle - 1] + upper) / 2.0)
}

fn significant(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 1.0 => format!("{value:.2}"),
        value => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{Better, Table, median};

    #[test]
    fn the_median_is_the_middle_or_between_the_two_middles() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn a_ratio_over_1_is_good_whichever_way_the_figure_goes() {
        let mut table = Table::new(vec!["ours", "theirs"]);
        table.record("time, s", Better::Less, "ours", 1.0);
        table.record("time, s", Better::Less, "theirs", 4.0);
        table.record("speed", Better::More, "ours", 300.0);
        table.record("speed", Better::More, "theirs", 150.0);
        table.record("alone", Better::More, "ours", 1.5);
        let text = table.render();
        assert!(text.contains("| time, s | 1.00 | 4.00 | 4.00 |"), "{text}");
        assert!(text.contains("| speed | 300 | 150 | 2.00 |"), "{text}");
        assert!(text.contains("| alone | 1.50 | – | – |"), "{text}");
    }
}
