//! What the server says when it is ready: model, optimizations, address, a line to paste.

use std::fmt::Write;
use std::net::SocketAddr;

use aisp_engine::{ModelInfo, OptimizationStatus};

/// The start-up text. Shows no key.
pub fn banner(
    info: &ModelInfo,
    served_name: &str,
    optimizations: &[OptimizationStatus],
    address: SocketAddr,
    needs_key: bool,
) -> String {
    let mut text = String::new();
    let millions = info.num_parameters as f64 / 1e6;
    // Writing to a string cannot fail.
    let _ = writeln!(text, "aisp-serve {}", env!("CARGO_PKG_VERSION"));
    let _ = writeln!(
        text,
        "model      {served_name}: {millions:.1} M parameters, {}, on {}",
        info.weight_format, info.device
    );
    let _ = writeln!(
        text,
        "context    {} tokens; KV cache {} tokens, {:.0} MiB",
        info.max_model_len,
        info.num_kv_slots,
        info.kv_cache_bytes as f64 / f64::from(1 << 20)
    );
    text.push('\n');
    text.push_str(&table(optimizations));
    let _ = writeln!(text, "\nlistening on http://{address}\n");
    let key = if needs_key { " -H \"Authorization: Bearer $AISP_API_KEY\"" } else { "" };
    let _ = writeln!(
        text,
        "curl http://{address}/v1/chat/completions{key} -H 'Content-Type: application/json' \\\n  \
         -d '{{\"messages\": [{{\"role\": \"user\", \"content\": \"Tell me a story about a dog.\"}}]}}'"
    );
    text
}

/// One row an optimization.
fn table(optimizations: &[OptimizationStatus]) -> String {
    let yes = |flag: bool| if flag { "yes" } else { "no" };
    let name_width = optimizations.iter().map(|status| status.name.len()).max().unwrap_or(0).max("optimization".len());
    let mut text = format!("{:name_width$}  requested  engaged  exactness    instead of\n", "optimization");
    for status in optimizations {
        let _ = writeln!(
            text,
            "{:name_width$}  {:9}  {:7}  {:11}  {}",
            status.name,
            yes(status.requested),
            yes(status.engaged),
            status.exactness,
            status.baseline,
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use aisp_engine::model::ModelWork;

    use super::*;

    #[test]
    fn the_start_up_text_is_known() {
        let info = ModelInfo {
            name: "story-12m".into(),
            weight_format: "Q8_0".into(),
            num_parameters: 11_800_000,
            weight_bytes: 0,
            vocab_size: 8192,
            max_model_len: 512,
            eos_token_ids: vec![],
            num_kv_slots: 8192,
            kv_cache_bytes: 3 << 20,
            device: "cpu, f32".into(),
            work: ModelWork::default(),
        };
        let status = |name, requested, exactness: &str, baseline| OptimizationStatus {
            name,
            summary: "",
            slot: String::new(),
            baseline,
            exactness: exactness.into(),
            lossless: true,
            requested,
            engaged: false,
            count: 0,
            counts: "",
            reason: None,
            source: "",
        };
        let optimizations = [
            status("continuous-batching", true, "same tokens", "static batching"),
            status("paged-kv", false, "bitwise", "contiguous"),
        ];
        let address = SocketAddr::from(([127, 0, 0, 1], 8000));
        insta::assert_snapshot!(banner(&info, "story-12m", &optimizations, address, true));
    }
}
