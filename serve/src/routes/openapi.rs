//! `GET /openapi.json`: the routes, written by hand in `openapi.json` and held to the truth by tests.

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};

/// The document.
const DOCUMENT: &str = include_str!("openapi.json");

pub(super) async fn document() -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], DOCUMENT).into_response()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn the_document_lists_exactly_the_routes() {
        let document: Value = serde_json::from_str(DOCUMENT).unwrap();
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
        let paths = document["paths"].as_object().unwrap();
        let mut documented: Vec<(String, String)> = paths
            .iter()
            .flat_map(|(path, methods)| {
                methods.as_object().unwrap().keys().map(move |method| (method.clone(), path.clone()))
            })
            .collect();
        let mut served: Vec<(String, String)> = super::super::ROUTES
            .iter()
            .map(|(method, path, _)| ((*method).to_owned(), path.replace("{*id}", "{id}")))
            .collect();
        documented.sort();
        served.sort();
        assert_eq!(documented, served);
    }
}
