//! A trace of real steps: what the engine did when, as a file for Perfetto and as a table of what binds.

mod phases;
mod recorder;

use aisp_engine::model::WorkTotals;
use aisp_engine::text::TextDecoder;
use aisp_engine::{Engine, ModelInfo, Request, SamplingParams, Selection};
use serde_json::{Value, json};
use tracing_subscriber::layer::SubscriberExt;

pub use phases::{Branch, PhaseRow, phases, table};
pub use recorder::{Recorder, Span};

use crate::LabError;
use crate::lab::LabContext;
use crate::labs::{EngineSettings, RequestMix, RequestSet};

/// What is traced.
#[derive(Debug, Clone)]
pub struct TraceSettings {
    /// The switches.
    pub selection: Selection,
    /// The mix of requests for a model of so many parameters.
    pub mix: fn(u64) -> RequestMix,
    /// Bounds of the engine.
    pub engine: EngineSettings,
    /// Steps after which the recording ends.
    pub max_steps: usize,
}

/// One step of the engine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// From the start of the recording. Units: seconds.
    pub start_s: f64,
    /// How long it took, text included.
    pub seconds: f64,
    /// Tokens computed.
    pub num_tokens: usize,
    /// Sequences that took part.
    pub num_sequences: usize,
    /// What was computed.
    pub work: WorkTotals,
}

impl Step {
    /// Whether a prompt was computed in it.
    pub fn is_prefill(&self) -> bool {
        self.num_tokens > self.num_sequences
    }
}

/// What was recorded.
#[derive(Debug, Clone)]
pub struct Trace {
    /// What ran.
    pub model: ModelInfo,
    /// The switches.
    pub selection: Selection,
    /// In order.
    pub steps: Vec<Step>,
    /// By start; each lies inside a step.
    pub spans: Vec<Span>,
}

/// Serves the workload once unrecorded and once recorded. Ends early on Ctrl-C.
///
/// Errors: a model that cannot be loaded, a step that fails.
pub fn record(context: &LabContext, settings: &TraceSettings) -> Result<Trace, LabError> {
    let engine = context.engine(settings.selection.clone());
    let engine = engine.max_num_seqs(settings.engine.max_num_seqs).max_model_len(Some(settings.engine.max_model_len));
    let mut engine = engine.build()?;
    let model = engine.model_info().clone();
    let requests = RequestSet::draw((settings.mix)(model.num_parameters), &engine, context.seed)?;
    requests.serve(&mut engine)?;
    let recorder = Recorder::start();
    let subscriber = tracing_subscriber::registry().with(recorder.clone());
    let steps = tracing::subscriber::with_default(subscriber, || {
        steps(&mut engine, &requests, settings.max_steps, &recorder, context)
    })?;
    Ok(Trace { model, selection: settings.selection.clone(), steps, spans: recorder.spans() })
}

fn steps(
    engine: &mut Engine,
    requests: &RequestSet,
    max_steps: usize,
    recorder: &Recorder,
    context: &LabContext,
) -> Result<Vec<Step>, LabError> {
    let mut decoders = Vec::new();
    let mut first_id = None;
    for planned in &requests.requests {
        let params = SamplingParams { ignore_eos: true, ..SamplingParams::greedy(planned.num_answer_tokens) };
        decoders.push(engine.tokenizer().map(|tokenizer| TextDecoder::new(tokenizer.clone(), &params)));
        let id =
            engine.add_request(Request::new(planned.prompt.clone(), params)).map_err(aisp_engine::EngineError::from)?;
        first_id.get_or_insert(id.0);
    }
    let mut steps = Vec::new();
    while engine.has_unfinished() && steps.len() < max_steps && !context.stop.is_requested() {
        let (start_s, before) = (recorder.now_s(), engine.stats().work);
        let outputs = engine.step()?;
        tracing::debug_span!("detokenize").in_scope(|| {
            for output in &outputs {
                let decoder = decoders.get_mut((output.id.0 - first_id.unwrap_or(0)) as usize);
                let Some(decoder) = decoder.and_then(Option::as_mut) else { continue };
                for token in &output.tokens {
                    std::hint::black_box(decoder.push(token.id));
                }
            }
        });
        let stats = engine.stats();
        if let Some(last) = stats.last_step {
            let (num_tokens, num_sequences, work) = (last.num_tokens, last.num_sequences, stats.work - before);
            steps.push(Step { start_s, seconds: recorder.now_s() - start_s, num_tokens, num_sequences, work });
        }
    }
    Ok(steps)
}

impl Trace {
    /// The trace in the format that Perfetto and `chrome://tracing` read.
    ///
    /// Source: "Trace Event Format", complete events.
    pub fn to_chrome_json(&self) -> Value {
        let micros = |seconds: f64| (seconds * 1e9).round() / 1e3;
        let event = |name: String, start_s: f64, seconds: f64, args: Value| {
            json!({
                "name": name, "cat": "engine", "ph": "X", "pid": 1, "tid": 1,
                "ts": micros(start_s), "dur": micros(seconds), "args": args,
            })
        };
        let name = |tid: Option<u32>, what: &str, name: &str| json!({ "name": what, "ph": "M", "pid": 1, "tid": tid, "args": { "name": name } });
        let mut events = vec![
            name(None, "process_name", &format!("aisp, {}, {}", self.model.name, self.selection)),
            name(Some(1), "thread_name", "engine"),
        ];
        events.extend(self.steps.iter().map(|step| {
            let what = if step.is_prefill() { "step (prefill)" } else { "step (decode)" };
            let args = json!({ "num_tokens": step.num_tokens, "num_sequences": step.num_sequences });
            event(what.to_owned(), step.start_s, step.seconds, args)
        }));
        events.extend(self.spans.iter().map(|span| {
            let name = span.index.map_or(span.name.to_owned(), |index| format!("{} {index}", span.name));
            event(name, span.start_s, span.seconds, json!({}))
        }));
        json!({ "displayTimeUnit": "ms", "traceEvents": events })
    }
}

#[cfg(test)]
mod tests;
