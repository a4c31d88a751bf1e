//! Downloads from a hub on this machine that may break, lie or attack.
// A test ends where it fails; clippy's own exception does not reach helper functions.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]
#![cfg(feature = "hub")]

mod loader_support;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aisp_engine::loader::{Checkpoint, HubOptions, LoadError, LoadOptions, ModelSource, TokenizerSource, load};
use loader_support::check_outcome;
use loader_support::gguf::GgufFile;
use loader_support::hf::{self, Files};
use loader_support::hub::{Asked, COMMIT, FakeHub, Reply, serve, sha256};
use serde_json::json;

const TOKEN: &str = "hf_do_not_show";

/// A cache in a folder of its own, so that anything written beside it is seen.
struct Machine {
    folder: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    fn options(&self, endpoint: &str) -> LoadOptions {
        let hub = HubOptions {
            endpoint: endpoint.into(),
            cache: Some(self.cache()),
            token: Some(TOKEN.into()),
            offline: false,
            timeout: Duration::from_secs(2),
        };
        LoadOptions { hub, ..LoadOptions::default() }
    }

    fn load(&self, endpoint: &str, model: &str) -> Result<Checkpoint, LoadError> {
        self.load_with(model, &self.options(endpoint))
    }

    /// Whatever happens: one line, no token in it, nothing outside the cache, no partial file under a final name.
    fn load_with(&self, model: &str, options: &LoadOptions) -> Result<Checkpoint, LoadError> {
        let source: ModelSource = model.parse().unwrap();
        assert!(matches!(source, ModelSource::Hub { .. }));
        let mut outcome = load(&source, options);
        check_outcome(&mut outcome);
        if let Err(error) = &outcome {
            assert!(!format!("{error} {error:?}").contains(TOKEN), "{error}");
        }
        let beside: Vec<_> = std::fs::read_dir(self.folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(beside.iter().all(|name| name == "cache"), "written outside the cache: {beside:?}");
        for blob in self.blobs() {
            let name = blob.file_name().unwrap().to_str().unwrap().to_owned();
            if !name.contains('.') {
                assert_eq!(sha256(&std::fs::read(&blob).unwrap()), name, "a bad blob stayed");
            }
        }
        outcome
    }

    fn fails(&self, endpoint: &str, model: &str, expected: &str) {
        let message = self.load(endpoint, model).expect_err(expected).to_string();
        assert!(message.contains(expected), "expected '{expected}': {message}");
    }

    fn blobs(&self) -> Vec<PathBuf> {
        let folder = self.cache().join("models--org--name/blobs");
        std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
    }

    fn snapshot(&self) -> PathBuf {
        self.cache().join("models--org--name/snapshots").join(COMMIT)
    }
}

/// A hub that serves `files`, with some answers spoiled.
fn spoiled(files: Files, spoil: impl Fn(&Asked, Reply) -> Reply + Send + Sync + 'static) -> FakeHub {
    FakeHub::start(move |asked| spoil(asked, serve(&files, asked)))
}

fn honest(files: Files) -> FakeHub {
    spoiled(files, |_, reply| reply)
}

#[test]
fn a_model_is_fetched_once_and_then_needs_no_hub() {
    let machine = Machine::new();
    let hub = honest(hf::sharded_folder());
    let endpoint = hub.endpoint();
    let checkpoint = machine.load(&endpoint, "org/name").unwrap();
    assert_eq!((checkpoint.name.as_str(), checkpoint.source.to_string().as_str()), ("org/name", "org/name"));
    assert!(matches!(checkpoint.tokenizer, TokenizerSource::Json(_)));
    assert_eq!(checkpoint.config.eos_token_ids, [2, 3, 4]);
    let asked = hub.take_asked();
    assert!(asked.iter().all(|asked| asked.headers.get("authorization") == Some(&format!("Bearer {TOKEN}"))));
    assert_eq!(std::fs::read_to_string(machine.cache().join("models--org--name/refs/main")).unwrap(), COMMIT);
    #[cfg(unix)]
    assert!(std::fs::read_link(machine.snapshot().join("config.json")).unwrap().starts_with("../../blobs"));

    machine.load(&endpoint, "org/name").unwrap();
    let lines: Vec<String> = hub.take_asked().iter().map(Asked::line).collect();
    assert_eq!(lines, ["GET /api/models/org/name/revision/main"], "a warm cache asks only for the commit");
    machine.load(&endpoint, &format!("org/name@{COMMIT}")).unwrap();
    let mut offline = machine.options(&endpoint);
    offline.hub.offline = true;
    machine.load_with("org/name", &offline).unwrap();
    assert!(hub.take_asked().is_empty(), "a known commit or offline mode asks nothing");
    drop(hub);
    machine.load(&endpoint, "org/name").unwrap();
}

#[test]
fn without_a_hub_and_without_a_cache_the_error_names_endpoint_and_cure() {
    let machine = Machine::new();
    let endpoint = honest(Files::new()).endpoint();
    let message = machine.load(&endpoint, "org/name").unwrap_err().to_string();
    assert!(
        message.contains(&endpoint) && message.contains("HF_ENDPOINT") && message.contains("org/name"),
        "{message}"
    );
    let mut offline = machine.options(&endpoint);
    offline.hub.offline = true;
    let message = machine.load_with("org/name", &offline).unwrap_err().to_string();
    assert!(message.contains("HF_HUB_OFFLINE") && message.contains("config.json"), "{message}");
    offline.hub.cache = None;
    assert!(machine.load_with("org/name", &offline).unwrap_err().to_string().contains("HF_HUB_CACHE"));
    machine.fails("ftp://x", "org/name", "HF_ENDPOINT");
    machine.fails("http://hub.invalid", "org/name", "http://hub.invalid");
}

#[test]
fn a_cut_transfer_leaves_no_file_and_goes_on_where_it_stopped() {
    let machine = Machine::new();
    let files = hf::folder();
    let weights = files["model.safetensors"].clone();
    let size = weights.len();
    let hub = spoiled(files.clone(), move |asked, mut reply| {
        if asked.method == "GET" && asked.path.ends_with(".safetensors") {
            reply.body.truncate(size / 2);
            return reply.header("content-length", size);
        }
        reply
    });
    machine.fails(&hub.endpoint(), "org/name", "try again");
    assert!(!machine.snapshot().join("model.safetensors").exists());
    drop(hub);

    let hub = honest(files);
    machine.load(&hub.endpoint(), "org/name").unwrap();
    let resumed = hub.take_asked().into_iter().find_map(|asked| asked.headers.get("range").cloned());
    assert_eq!(resumed, Some(format!("bytes={}-", size / 2)));
    assert_eq!(std::fs::read(machine.snapshot().join("model.safetensors")).unwrap(), weights);
}

#[test]
fn a_resumed_transfer_that_starts_elsewhere_or_holds_other_bytes_is_refused() {
    for (spoil, expected) in [
        ((|reply: Reply| reply.header("content-range", "bytes 0-9/10")) as fn(Reply) -> Reply, "content-range"),
        (
            |mut reply: Reply| {
                reply.body.fill(7);
                reply
            },
            "sha256",
        ),
    ] {
        let machine = Machine::new();
        let files = hf::folder();
        let size = files["model.safetensors"].len();
        let cut = spoiled(files.clone(), move |asked, mut reply| {
            if asked.method == "GET" && asked.path.ends_with(".safetensors") {
                reply.body.truncate(100);
                return reply.header("content-length", size);
            }
            reply
        });
        machine.fails(&cut.endpoint(), "org/name", "try again");
        let hub = spoiled(
            files.clone(),
            move |asked, reply| {
                if asked.headers.contains_key("range") { spoil(reply) } else { reply }
            },
        );
        machine.fails(&hub.endpoint(), "org/name", expected);
        // A server without ranges starts again.
        let whole = spoiled(files, |asked, reply| {
            if asked.headers.contains_key("range") {
                let mut plain = asked.clone();
                plain.headers.remove("range");
                return serve(&hf::folder(), &plain);
            }
            reply
        });
        machine.load(&whole.endpoint(), "org/name").unwrap();
    }
}

#[test]
fn sizes_and_checksums_must_be_right() {
    let weights = |asked: &Asked| asked.path.ends_with(".safetensors");
    for (announced, expected) in [(2_i64, "is more than the"), (-2, "then the transfer ended")] {
        let machine = Machine::new();
        // The hub announces another size than the body has.
        let hub = spoiled(hf::folder(), move |asked, reply| {
            let size = reply.body.len() as i64 - announced;
            if weights(asked) && asked.method == "HEAD" { reply.header("content-length", size) } else { reply }
        });
        machine.fails(&hub.endpoint(), "org/name", expected);
    }
    let machine = Machine::new();
    let hub = spoiled(hf::folder(), move |asked, mut reply| {
        if weights(asked) {
            *reply.body.last_mut().unwrap() ^= 1;
        }
        reply
    });
    machine.fails(&hub.endpoint(), "org/name", "sha256");
    assert!(!machine.blobs().iter().any(|blob| blob.extension().is_some_and(|e| e == "part")));
    for (size, expected) in
        [("many", "size"), ("-1", "size"), ("1099511627776", "size is 1099511627776 bytes, at most")]
    {
        let hub = spoiled(hf::folder(), move |asked, reply| {
            let spoil = asked.method == "HEAD" && asked.path.ends_with("/config.json");
            if spoil { reply.header("x-linked-size", size).header("x-linked-etag", "\"a\"") } else { reply }
        });
        Machine::new().fails(&hub.endpoint(), "org/name", expected);
    }
}

#[test]
fn names_etags_and_commits_that_lead_out_of_the_cache_are_refused() {
    for name in ["../evil.json", "/tmp/evil.json", "a/../../evil.json", "..\\evil.json", "a\nb"] {
        let mut files = hf::folder();
        files.insert(name.into(), b"{}".to_vec());
        Machine::new().fails(&honest(files).endpoint(), "org/name", "leads out of the repository");
    }
    for etag in ["../../../evil", "/tmp/evil", "..", "a/b", "", "a.lock", "W/\"../x\"", &"a".repeat(200)] {
        let value = format!("\"{etag}\"");
        let hub = spoiled(hf::folder(), move |_, reply| reply.header("etag", &value));
        Machine::new().fails(&hub.endpoint(), "org/name", "etag");
    }
    for sha in ["../../../evil", "..", "", "a/b"] {
        let hub = FakeHub::start(move |_| Reply::new(200, json!({"sha": sha, "siblings": []}).to_string()));
        Machine::new().fails(&hub.endpoint(), "org/name", "sha");
    }
    let hub = spoiled(hf::folder(), |_, reply| reply.header("x-repo-commit", "../../evil"));
    Machine::new().fails(&hub.endpoint(), "org/name", "x-repo-commit");
    let mut files = hf::sharded_folder();
    let index = json!({"weight_map": {"w": "../../evil.safetensors"}}).to_string();
    files.insert("model.safetensors.index.json".into(), index.into());
    Machine::new().fails(&honest(files).endpoint(), "org/name", "weight_map.w");
}

#[test]
fn refusals_say_what_to_do() {
    for (status, expected) in [
        (401, "HF_TOKEN"),
        (403, "HF_TOKEN"),
        (404, "check the spelling"),
        (429, "wait"),
        (500, "try again later"),
        (418, "HF_ENDPOINT"),
    ] {
        let hub = FakeHub::start(move |_| Reply::new(status, "no"));
        let machine = Machine::new();
        machine.fails(&hub.endpoint(), "org/name", expected);
        machine.fails(&hub.endpoint(), "org/name", &status.to_string());
        let hub =
            spoiled(
                hf::folder(),
                move |asked, reply| {
                    if asked.path.ends_with(".safetensors") { Reply::new(status, "no") } else { reply }
                },
            );
        machine.fails(&hub.endpoint(), "org/name", "model.safetensors");
    }
    for body in ["<html>", "{}", "[", r#"{"sha": 3, "siblings": []}"#] {
        let hub = FakeHub::start(move |_| Reply::new(200, body));
        Machine::new().fails(&hub.endpoint(), "org/name", "JSON");
    }
    let hub = spoiled(hf::folder(), |_, mut reply| {
        reply.headers.clear();
        reply
    });
    Machine::new().fails(&hub.endpoint(), "org/name", "etag is missing");
}

#[test]
fn a_broken_hub_does_not_spoil_a_warm_cache() {
    let machine = Machine::new();
    machine.load(&honest(hf::folder()).endpoint(), "org/name").unwrap();
    machine.load(&FakeHub::start(|_| Reply::new(503, "no")).endpoint(), "org/name").unwrap();
    machine.fails(&FakeHub::start(|_| Reply::new(404, "no")).endpoint(), "org/name", "404");
}

#[test]
fn redirects_are_followed_without_the_token() {
    let files = hf::folder();
    let address = std::sync::Arc::new(std::sync::OnceLock::<String>::new());
    let store = address.clone();
    let hub = FakeHub::start(move |asked| {
        if let Some(name) = asked.path.strip_prefix("/store/") {
            assert_eq!(asked.method, "GET", "stores take no HEAD");
            return Reply::new(200, files[name].as_slice());
        }
        let reply = serve(&files, asked);
        match asked.path.rsplit_once('/') {
            // A large file: the hub knows it all and sends the client to a store.
            Some((_, "model.safetensors")) => Reply::new(302, "")
                .header("location", format!("{}/store/model.safetensors", store.get().unwrap()))
                .header("x-linked-etag", format!("\"{}\"", sha256(&files["model.safetensors"])))
                .header("x-linked-size", files["model.safetensors"].len())
                .header("x-repo-commit", COMMIT),
            // A small one: a path on the hub itself.
            Some((_, "config.json")) if !asked.path.contains("?moved") => {
                Reply::new(307, "").header("location", format!("{}?moved", asked.path))
            }
            Some((folder, "config.json?moved")) => {
                let plain = Asked { path: format!("{folder}/config.json"), ..asked.clone() };
                serve(&files, &plain)
            }
            _ => reply,
        }
    });
    address.set(hub.other_origin()).unwrap();
    let machine = Machine::new();
    machine.load(&hub.endpoint(), "org/name").unwrap();
    let asked = hub.take_asked();
    let (at_store, at_hub): (Vec<_>, Vec<_>) = asked.iter().partition(|asked| asked.path.starts_with("/store/"));
    assert_eq!(at_store.len(), 1);
    assert!(at_store.iter().all(|asked| !asked.headers.contains_key("authorization")), "the token left the hub");
    assert!(at_hub.iter().all(|asked| asked.headers.contains_key("authorization")));
}

#[test]
fn redirects_that_lead_nowhere_end() {
    for (location, expected) in [
        (Some("/loop"), "redirects more than"),
        (Some("file:///etc/passwd"), "location"),
        (Some("//"), "location"),
        (Some("no spaces here"), "location"),
        (None, "location is missing"),
    ] {
        let hub = FakeHub::start(move |_| match location {
            Some(location) => Reply::new(302, "").header("location", location),
            None => Reply::new(302, ""),
        });
        Machine::new().fails(&hub.endpoint(), "org/name", expected);
    }
}

#[test]
fn a_silent_hub_is_given_up() {
    let hub = FakeHub::start(|_| {
        std::thread::sleep(Duration::from_secs(3));
        Reply::new(200, "")
    });
    let machine = Machine::new();
    let mut options = machine.options(&hub.endpoint());
    options.hub.timeout = Duration::from_millis(200);
    let start = Instant::now();
    let message = machine.load_with("org/name", &options).unwrap_err().to_string();
    assert!(message.contains("timeout") && start.elapsed() < Duration::from_secs(2), "{message}");
}

#[test]
fn gguf_repositories() {
    let mut files = Files::new();
    files.insert("README.md".into(), b"hello".to_vec());
    let machine = Machine::new();
    machine.fails(&honest(files.clone()).endpoint(), "org/name", "neither safetensors");
    files.insert("model-Q8_0.gguf".into(), GgufFile::tiny().bytes());
    let hub = honest(files.clone());
    assert_eq!(machine.load(&hub.endpoint(), "org/name").unwrap().weight_format, "Q8_0+Q4_1");
    files.insert("sub/model-Q4_0.gguf".into(), GgufFile::model("llama", 32, [2, 2, 2, 0]).bytes());
    let hub = honest(files);
    let machine = Machine::new();
    machine.fails(&hub.endpoint(), "org/name", "name one (org/name/FILE): model-Q8_0.gguf, sub/model-Q4_0.gguf");
    let checkpoint = machine.load(&hub.endpoint(), "org/name/sub/model-Q4_0.gguf").unwrap();
    assert_eq!((checkpoint.weight_format.as_str(), checkpoint.name.as_str()), ("Q4_0", "org/name"));
    machine.fails(&hub.endpoint(), "org/name/other.gguf", "is not in the repository");
    let endpoint = hub.endpoint();
    drop(hub);
    machine.load(&endpoint, "org/name/sub/model-Q4_0.gguf").unwrap();
    assert!(Path::new(&machine.snapshot().join("sub/model-Q4_0.gguf")).is_file());
}
