//! Where the hub and its cache are: the environment variables that all its tools know.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Where downloads come from and go to.
#[derive(Clone, PartialEq)]
pub struct HubOptions {
    /// `https://huggingface.co`, or a mirror.
    pub endpoint: String,
    /// The cache folder; `None` when no home folder is known, and nothing can be downloaded.
    pub cache: Option<PathBuf>,
    /// Sent to `endpoint` only.
    pub token: Option<String>,
    /// Send no request at all.
    pub offline: bool,
    /// Longest silence of the server.
    pub timeout: Duration,
}

impl Default for HubOptions {
    fn default() -> Self {
        Self::from_env()
    }
}

impl fmt::Debug for HubOptions {
    /// Shows whether there is a token, never the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubOptions")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("has_token", &self.token.is_some())
            .field("offline", &self.offline)
            .field("timeout", &self.timeout)
            .finish()
    }
}

impl HubOptions {
    /// As `HF_ENDPOINT`, `HF_HUB_CACHE`, `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` say.
    ///
    /// Source: <https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables>.
    pub fn from_env() -> Self {
        Self::from_vars(|name| std::env::var(name).ok())
    }

    fn from_vars(var: impl Fn(&str) -> Option<String>) -> Self {
        let var = |name: &str| var(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        let home = var("HF_HOME").map(PathBuf::from).or_else(|| {
            let caches = var("XDG_CACHE_HOME").map(PathBuf::from);
            caches.or_else(|| Some(std::env::home_dir()?.join(".cache"))).map(|caches| caches.join("huggingface"))
        });
        let token_file = || {
            let text = std::fs::read_to_string(home.as_ref()?.join("token")).ok()?;
            Some(text.trim().to_owned()).filter(|token| !token.is_empty())
        };
        let endpoint = var("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let offline = var("HF_HUB_OFFLINE")
            .is_some_and(|value| matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"));
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: var("HF_TOKEN").or_else(token_file),
            cache: var("HF_HUB_CACHE").map(PathBuf::from).or_else(|| home.as_ref().map(|home| home.join("hub"))),
            offline,
            timeout: Duration::from_secs(30),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(vars: &[(&str, &str)]) -> HubOptions {
        HubOptions::from_vars(|name| vars.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).into()))
    }

    #[test]
    fn the_environment_decides() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("token"), "hf_file\n").unwrap();
        let home_text = home.path().to_str().unwrap();
        let options = from(&[("HF_HOME", home_text), ("HF_ENDPOINT", "http://mirror/"), ("HF_HUB_OFFLINE", "1")]);
        assert_eq!(options.cache, Some(home.path().join("hub")));
        assert_eq!((options.endpoint.as_str(), options.offline), ("http://mirror", true));
        assert_eq!(options.token.as_deref(), Some("hf_file"));
        let options = from(&[("HF_HOME", home_text), ("HF_HUB_CACHE", "/c"), ("HF_TOKEN", "hf_env")]);
        assert_eq!((options.cache, options.token.as_deref()), (Some("/c".into()), Some("hf_env")));
        assert_eq!((options.endpoint.as_str(), options.offline), ("https://huggingface.co", false));
    }

    #[test]
    fn the_token_is_never_shown() {
        let text = format!("{:?}", from(&[("HF_TOKEN", "hf_secret")]));
        assert!(!text.contains("hf_secret") && text.contains("has_token: true"), "{text}");
    }
}
