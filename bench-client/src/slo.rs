//! Service-level objectives: the latencies that make a completed request a good one.

use serde::Serialize;

use crate::{Error, RequestRecord};

/// Upper bounds on latency; a request is good when it completed and met every one that is set. Units: milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Slo {
    /// Time to the first token, from the intended arrival.
    pub ttft_ms: Option<f64>,
    /// Mean time per token after the first.
    pub tpot_ms: Option<f64>,
    /// End-to-end latency, from the intended arrival.
    pub e2el_ms: Option<f64>,
}

impl Slo {
    /// Reads `ttft:200`, `tpot:50` and `e2el:5000`; separators may also be commas.
    ///
    /// Errors: [`Error::BadSetting`] for an unknown name, a bad number, or a name given twice.
    pub fn parse<'a>(terms: impl IntoIterator<Item = &'a str>) -> Result<Self, Error> {
        let mut slo = Self::default();
        for term in terms.into_iter().flat_map(|terms| terms.split(',')) {
            let bad =
                |problem: String| Error::setting("--goodput", problem, "write it like ttft:200 tpot:50 e2el:5000");
            let (name, value) =
                term.split_once(':').ok_or_else(|| bad(format!("\"{term}\" is not NAME:MILLISECONDS")))?;
            let bound: f64 = value.parse().map_err(|_| bad(format!("\"{value}\" is not a number")))?;
            if !(bound.is_finite() && bound > 0.0) {
                return Err(bad(format!("{value} ms cannot be met")));
            }
            let field = match name {
                "ttft" => &mut slo.ttft_ms,
                "tpot" => &mut slo.tpot_ms,
                "e2el" => &mut slo.e2el_ms,
                _ => return Err(bad(format!("\"{name}\" is none of ttft, tpot, e2el"))),
            };
            if field.replace(bound).is_some() {
                return Err(bad(format!("{name} is given twice")));
            }
        }
        Ok(slo)
    }

    /// Whether no objective is set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the request completed and met every objective. A bound on a latency that a request does not have (the
    /// time per token of a single token) is met.
    pub fn is_met_by(&self, record: &RequestRecord) -> bool {
        let within = |bound_ms: Option<f64>, value_s: Option<f64>| match (bound_ms, value_s) {
            (Some(bound_ms), Some(value_s)) => value_s * 1e3 <= bound_ms,
            _ => true,
        };
        record.is_completed()
            && within(self.ttft_ms, record.ttft_s())
            && within(self.tpot_ms, record.tpot_s)
            && within(self.e2el_ms, record.e2el_s())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::completed;
    use crate::{FailureKind, Outcome};

    #[test]
    fn parses_what_vllm_users_type() {
        let slo = Slo::parse(["ttft:200", "tpot:50", "e2el:5000"]).unwrap();
        assert_eq!((slo.ttft_ms, slo.tpot_ms, slo.e2el_ms), (Some(200.0), Some(50.0), Some(5000.0)));
        assert_eq!(Slo::parse(["ttft:200,tpot:50,e2el:5000"]).unwrap(), slo);
        assert!(Slo::parse([]).unwrap().is_empty());
        for (bad, problem) in [
            ("ttft", "not NAME:MILLISECONDS"),
            ("itl:5", "none of ttft, tpot, e2el"),
            ("ttft:fast", "not a number"),
            ("ttft:-1", "cannot be met"),
            ("ttft:nan", "cannot be met"),
            ("ttft:1,ttft:2", "given twice"),
        ] {
            let message = Slo::parse([bad]).unwrap_err().to_string();
            assert!(message.contains(problem), "{message}");
        }
    }

    #[test]
    fn every_objective_must_be_met() {
        // Intended at 10 s: TTFT 100 ms, TPOT 20 ms, E2E 500 ms.
        let record = completed(10.0, 0.100, 0.020, 0.500);
        let met = |terms: &str| Slo::parse([terms]).unwrap().is_met_by(&record);
        assert!(met("ttft:101,tpot:21,e2el:501"));
        assert!(!met("ttft:99,tpot:21,e2el:501"));
        assert!(!met("ttft:101,tpot:19,e2el:501"));
        assert!(!met("ttft:101,tpot:21,e2el:499"));
        let failed = RequestRecord {
            outcome: Outcome::Failed { kind: FailureKind::Truncated, message: String::new() },
            ..record.clone()
        };
        assert!(!Slo::default().is_met_by(&failed), "a failed request is never good");
        let single = RequestRecord { tpot_s: None, ..record.clone() };
        assert!(Slo::parse(["tpot:1"]).unwrap().is_met_by(&single));
    }
}
