//! Medians, and the table they are printed in.

use std::fmt;
use std::time::Duration;

/// Rows of figures, a column per contestant, the first of which is ours.
pub(crate) struct Table {
    names: Vec<String>,
    rows: Vec<Row>,
    notes: Vec<String>,
}

struct Row {
    label: String,
    cells: Vec<String>,
    /// In one unit for the whole row, for the ratios. None: nothing measured.
    values: Vec<Option<f64>>,
}

impl Table {
    pub(crate) fn new(names: &[&str]) -> Self {
        Self {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            rows: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// A line below the table.
    pub(crate) fn note(&mut self, text: &str) {
        self.notes.push(text.to_owned());
    }

    /// A row of medians, with the fastest of each in brackets.
    pub(crate) fn times(&mut self, label: &str, samples: &[Vec<Duration>]) {
        let mut row = Row {
            label: label.to_owned(),
            cells: Vec::new(),
            values: Vec::new(),
        };
        for samples in samples {
            match median(samples) {
                Some((middle, least)) => {
                    row.cells
                        .push(format!("{} ({})", short(middle), short(least)));
                    row.values.push(Some(middle.as_secs_f64()));
                }
                None => {
                    row.cells.push("-".to_owned());
                    row.values.push(None);
                }
            }
        }
        self.rows.push(row);
    }

    /// A row of sizes in bytes; 0 means that there is nothing to measure.
    pub(crate) fn sizes(&mut self, label: &str, bytes: &[u64]) {
        self.rows.push(Row {
            label: label.to_owned(),
            cells: bytes
                .iter()
                .map(|&bytes| match bytes {
                    0 => "none".to_owned(),
                    bytes => format!("{:.2} MB", bytes as f64 / 1e6),
                })
                .collect(),
            values: bytes
                .iter()
                .map(|&bytes| (bytes > 0).then_some(bytes as f64))
                .collect(),
        });
    }
}

fn median(samples: &[Duration]) -> Option<(Duration, Duration)> {
    let mut sorted = samples.to_vec();
    sorted.sort();
    Some((*sorted.get(sorted.len() / 2)?, *sorted.first()?))
}

fn short(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 1.0 {
        format!("{:.1} ms", seconds * 1e3)
    } else {
        format!("{seconds:.2} s")
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "| median (fastest) |")?;
        for name in &self.names {
            write!(f, " {name} |")?;
        }
        for name in self.names.iter().skip(1) {
            write!(f, " {} / {name} |", self.names[0])?;
        }
        write!(f, "\n| --- |{}", " --- |".repeat(2 * self.names.len() - 1))?;
        for row in &self.rows {
            write!(f, "\n| {} |", row.label)?;
            for cell in &row.cells {
                write!(f, " {cell} |")?;
            }
            for other in row.values.iter().skip(1) {
                match (row.values[0], other) {
                    (Some(ours), Some(theirs)) if *theirs > 0.0 && ours > 0.0 => {
                        let ratio = theirs / ours;
                        if ratio >= 1.0 {
                            write!(f, " 1/{ratio:.1} |")?;
                        } else {
                            write!(f, " {:.1} × |", 1.0 / ratio)?;
                        }
                    }
                    _ => write!(f, " |")?,
                }
            }
        }
        for note in &self.notes {
            write!(f, "\n\n{note}")?;
        }
        Ok(())
    }
}
