//! All rows as CSV (RFC 4180), for spreadsheets.

use super::rows::{Group, Row};

const HEAD: &str = "lab,device,workload,run_id,date,arm,verdict,median_s,latency_ms,rate_per_s,rate_unit,memory_bytes,\
                    speedup,speedup_low,speedup_high,memory_savings,noise,roofline_share";

/// One line a row under a head; unknown figures are empty, never 0.
pub fn csv(groups: &[Group]) -> String {
    let lines = groups.iter().flat_map(|group| group.rows.iter().map(move |row| line(group, row)));
    std::iter::once(HEAD.to_owned()).chain(lines).map(|line| line + "\r\n").collect()
}

fn line(group: &Group, row: &Row) -> String {
    let number = |value: Option<f64>| value.map_or(String::new(), |value| value.to_string());
    let cells = [
        quoted(&group.lab),
        quoted(&group.device),
        quoted(&group.workload),
        quoted(&group.run_id),
        quoted(&group.date),
        quoted(&row.arm),
        quoted(&row.verdict_text),
        number(row.median_s),
        number(row.latency_ms),
        number(row.rate.map(|rate| rate.per_s)),
        row.rate.map_or(String::new(), |rate| rate.unit.to_owned()),
        row.memory_bytes.map_or(String::new(), |bytes| bytes.to_string()),
        number(row.speedup.map(|speedup| speedup.ratio)),
        number(row.speedup.map(|speedup| speedup.low)),
        number(row.speedup.map(|speedup| speedup.high)),
        number(row.memory_savings),
        number(group.noise),
        number(row.roofline_share),
    ];
    cells.join(",")
}

/// A text cell. Quotes are doubled, and a cell that a spreadsheet would take for a formula starts with an apostrophe.
fn quoted(text: &str) -> String {
    let formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']);
    let text = if formula { format!("'{text}") } else { text.to_owned() };
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

#[cfg(test)]
mod tests {
    use super::super::rows::{groups, samples};
    use super::*;

    #[test]
    fn every_line_has_every_column_and_unknown_is_empty() {
        let mut run = samples::run("r", &[("paged", 2.0, 0), ("broken", 9.0, 9)]);
        samples::wrong(&mut run, 1);
        let text = csv(&groups(&[run]));
        let lines: Vec<&str> = text.split_terminator("\r\n").collect();
        assert_eq!(lines.len(), 4);
        assert!(lines.iter().all(|line| line.matches(',').count() == HEAD.matches(',').count()), "{text}");
        assert!(lines[2].contains(",paged,x2.00,1,1000,100,tokens,,2,"), "{text}");
        assert!(lines[3].contains(",broken,wrong (3 tokens),,,,,"), "{text}");
    }

    #[test]
    fn cells_are_quoted_and_harmless() {
        assert_eq!(quoted("a,\"b\""), "\"a,\"\"b\"\"\"");
        assert_eq!(quoted("=cmd()"), "'=cmd()");
    }
}
