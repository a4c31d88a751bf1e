//! The three requests that a download needs: what a repository holds, what a file is, its bytes. Redirects are followed
//! here, a few of them, and the token goes to the endpoint only.

use std::io::Read;
use std::time::Duration;

use hf_hub::api::RepoInfo;
use ureq::http::{HeaderMap, Response, StatusCode, Uri};
use ureq::{Agent, Body};

use super::super::error::{LoadError, printable};
use super::options::HubOptions;

const MAX_REDIRECTS: usize = 5;
const MAX_INFO_BYTES: u64 = 16 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Talks to the hub about one repository.
pub(crate) struct Client {
    agent: Agent,
    endpoint: String,
    origin: Uri,
    token: Option<String>,
    /// `org/name`.
    pub(crate) repo: String,
}

/// What the hub says about a file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct FileInfo {
    /// Names the content; plain. For large files it is the content's sha256.
    pub(crate) etag: String,
    /// Units: bytes.
    pub(crate) num_bytes: u64,
}

/// The method and range of a request.
#[derive(Clone, Copy)]
enum Ask {
    Head,
    Get { from_byte: u64 },
}

impl Client {
    /// A client for one repository.
    ///
    /// Errors: the endpoint is not an http or https address.
    pub(crate) fn new(options: &HubOptions, repo: &str) -> Result<Self, LoadError> {
        let endpoint = printable(&options.endpoint);
        let origin: Option<Uri> = options.endpoint.parse().ok();
        let origin = origin.filter(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.query().is_none());
        let Some(origin) = origin else {
            let problem = format!("is '{endpoint}': give an address that starts with https://");
            return Err(LoadError::HubAnswer { repo: repo.into(), file: "-".into(), field: "HF_ENDPOINT", problem });
        };
        let mut config = Agent::config_builder()
            .user_agent(concat!("aisp/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .http_status_as_error(false)
            .https_only(origin.scheme_str() == Some("https"))
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(Some(CONNECT_TIMEOUT))
            .timeout_connect(Some(CONNECT_TIMEOUT.min(options.timeout)))
            .timeout_recv_response(Some(options.timeout))
            .timeout_per_read(Some(options.timeout));
        if matches!(origin.host(), Some("localhost" | "127.0.0.1" | "[::1]")) {
            config = config.proxy(None);
        }
        let agent = config.build().into();
        Ok(Self { agent, endpoint: options.endpoint.clone(), origin, token: options.token.clone(), repo: repo.into() })
    }

    /// The commit that a revision means and the names of its files. The commit is plain; names are not checked.
    pub(crate) fn repo_info(&self, revision: &str) -> Result<RepoInfo, LoadError> {
        let subject = format!("revision {revision}");
        let url = format!("{}/api/models/{}/revision/{}", self.endpoint, self.repo, revision.replace('/', "%2F"));
        let (response, _) = self.request(&url, Ask::Get { from_byte: 0 }, &subject)?;
        self.check_status(response.status(), &subject)?;
        let mut bytes = Vec::new();
        let body = response.into_body().into_reader();
        body.take(MAX_INFO_BYTES).read_to_end(&mut bytes).map_err(|error| self.unreachable(&error.to_string()))?;
        let info: RepoInfo = serde_json::from_slice(&bytes).map_err(|error| {
            self.bad_answer(&subject, "JSON", format!("is not valid: {}", printable(&error.to_string())))
        })?;
        if !is_plain_id(&info.sha) {
            let problem = format!("is '{}': a commit has letters and digits only", printable(&info.sha));
            return Err(self.bad_answer(&subject, "sha", problem));
        }
        Ok(info)
    }

    /// Content id and size of a file at a commit.
    pub(crate) fn file_info(&self, commit: &str, file: &str) -> Result<FileInfo, LoadError> {
        let (response, hops) = self.request(&self.file_url(commit, file), Ask::Head, file)?;
        let final_status = response.status();
        // Large files: the hub redirects to a store and says itself what will be found there.
        let mut headers = hops.iter().chain([response.headers()]);
        let header = |headers: &HeaderMap, name: &str| Some(headers.get(name)?.to_str().ok()?.to_owned());
        let linked = headers.clone().find_map(|h| Some((header(h, "x-linked-etag")?, header(h, "x-linked-size")?)));
        if let Some(sent) = headers.find_map(|h| header(h, "x-repo-commit")).filter(|sent| sent != commit) {
            let problem = format!("is '{}', asked for '{commit}'", printable(&sent));
            return Err(self.bad_answer(file, "x-repo-commit", problem));
        }
        let (etag, size) = match linked {
            Some(linked) => linked,
            None => {
                self.check_status(final_status, file)?;
                let missing = |name| self.bad_answer(file, name, "is missing: the endpoint is not a hub".into());
                let etag = header(response.headers(), "etag").ok_or_else(|| missing("etag"))?;
                (etag, header(response.headers(), "content-length").ok_or_else(|| missing("content-length"))?)
            }
        };
        let etag = etag.strip_prefix("W/").unwrap_or(&etag).trim_matches('"').to_owned();
        if !is_plain_id(&etag) {
            let problem = format!("is '{}': only letters, digits, '-' and '_' may name a file", printable(&etag));
            return Err(self.bad_answer(file, "etag", problem));
        }
        match size.parse() {
            Ok(num_bytes) => Ok(FileInfo { etag, num_bytes }),
            Err(_) => Err(self.bad_answer(file, "size", format!("is '{}', not a number", printable(&size)))),
        }
    }

    /// A file's bytes from `from_byte` on, and whether the server began there rather than at 0.
    pub(crate) fn open(&self, commit: &str, file: &str, from_byte: u64) -> Result<(impl Read, bool), LoadError> {
        let (response, _) = self.request(&self.file_url(commit, file), Ask::Get { from_byte }, file)?;
        self.check_status(response.status(), file)?;
        let expected = format!("bytes {from_byte}-");
        let range = response.headers().get("content-range").and_then(|value| value.to_str().ok());
        let resumed =
            response.status() == StatusCode::PARTIAL_CONTENT && range.is_some_and(|range| range.starts_with(&expected));
        if response.status() == StatusCode::PARTIAL_CONTENT && !resumed {
            let problem = format!("is '{}', asked for '{expected}'", printable(range.unwrap_or("missing")));
            return Err(self.bad_answer(file, "content-range", problem));
        }
        Ok((response.into_body().into_reader(), resumed))
    }

    /// What the server said is wrong.
    pub(crate) fn bad_answer(&self, file: &str, field: &'static str, problem: String) -> LoadError {
        LoadError::HubAnswer { repo: self.repo.clone(), file: printable(file), field, problem }
    }

    fn file_url(&self, commit: &str, file: &str) -> String {
        format!("{}/{}/resolve/{commit}/{file}", self.endpoint, self.repo)
    }

    fn unreachable(&self, reason: &str) -> LoadError {
        let endpoint = printable(&self.endpoint);
        LoadError::HubUnreachable { endpoint, repo: self.repo.clone(), reason: printable(reason) }
    }

    /// Sends a request and follows redirects. Returns the last response and the headers of those before it. A `HEAD`
    /// stops where the hub itself has said all: stores accept no `HEAD` on their signed addresses.
    fn request(&self, url: &str, ask: Ask, file: &str) -> Result<(Response<Body>, Vec<HeaderMap>), LoadError> {
        let bad_location = |problem: String| self.bad_answer(file, "location", problem);
        let mut uri: Uri = url.parse().map_err(|_| bad_location("is not an address".into()))?;
        let mut hops = Vec::new();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send(&uri, ask).map_err(|error| self.unreachable(&error.to_string()))?;
            let told_all = matches!(ask, Ask::Head) && response.headers().contains_key("x-linked-size");
            if !is_redirect(response.status()) || told_all {
                return Ok((response, hops));
            }
            let location = response.headers().get("location").and_then(|value| value.to_str().ok());
            let location = location.ok_or_else(|| bad_location("is missing in a redirect".into()))?;
            uri = resolve(&uri, location)
                .ok_or_else(|| bad_location(format!("is '{}': not an http(s) address", printable(location))))?;
            hops.push(response.headers().clone());
        }
        Err(bad_location(format!("redirects more than {MAX_REDIRECTS} times")))
    }

    fn send(&self, uri: &Uri, ask: Ask) -> Result<Response<Body>, ureq::Error> {
        let mut request = match ask {
            Ask::Head => self.agent.head(uri),
            Ask::Get { .. } => self.agent.get(uri),
        };
        if let Ask::Get { from_byte: from_byte @ 1.. } = ask {
            request = request.header("range", format!("bytes={from_byte}-"));
        }
        let at_endpoint = uri.scheme() == self.origin.scheme() && uri.authority() == self.origin.authority();
        if let Some(token) = self.token.as_ref().filter(|_| at_endpoint) {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        request.call()
    }

    fn check_status(&self, status: StatusCode, file: &str) -> Result<(), LoadError> {
        let cure = match status.as_u16() {
            200..=299 => return Ok(()),
            401 | 403 => "check the spelling; a private or gated model needs HF_TOKEN and its licence accepted",
            404 => "check the spelling of repository, revision and file",
            429 => "too many requests, wait a minute",
            500..=599 => "the hub has a problem, try again later",
            _ => "check HF_ENDPOINT",
        };
        Err(LoadError::HubStatus {
            repo: self.repo.clone(),
            endpoint: printable(&self.endpoint),
            status: status.as_u16(),
            file: printable(file),
            cure,
        })
    }
}

/// An etag or a commit that may name a file: no dot, no separator.
pub(crate) fn is_plain_id(id: &str) -> bool {
    (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Where a redirect leads: a whole address, or a path on the same server.
fn resolve(from: &Uri, location: &str) -> Option<Uri> {
    if location.starts_with('/') && !location.starts_with("//") {
        return format!("{}://{}{location}", from.scheme_str()?, from.authority()?).parse().ok();
    }
    let uri: Uri = location.parse().ok()?;
    matches!(uri.scheme_str(), Some("http" | "https")).then_some(uri)
}
