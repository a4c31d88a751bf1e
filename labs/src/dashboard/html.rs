//! HTML that cannot be injected into: literals go in as they are, everything else is escaped.

use std::fmt::{Display, Write};

/// Markup under construction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Html(String);

impl Html {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds markup. Only literals have this type, so no data can come this way.
    pub fn raw(&mut self, markup: &'static str) -> &mut Self {
        self.0.push_str(markup);
        self
    }

    /// Adds data, escaped for text and for quoted attributes.
    pub fn text(&mut self, data: impl Display) -> &mut Self {
        // Writing to a string cannot fail.
        let _ = write!(Escaping(&mut self.0), "{data}");
        self
    }

    /// Adds ` name="data"`.
    pub fn attribute(&mut self, name: &'static str, data: impl Display) -> &mut Self {
        self.raw(" ").raw(name).raw("=\"").text(data).raw("\"")
    }

    /// Adds markup that is complete.
    pub fn add(&mut self, other: &Self) -> &mut Self {
        self.0.push_str(&other.0);
        self
    }

    /// The markup as text.
    pub fn into_string(self) -> String {
        self.0
    }
}

struct Escaping<'a>(&'a mut String);

impl Write for Escaping<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for letter in text.chars() {
            match letter {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                other => self.0.push(other),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_escaped_and_markup_is_not() {
        let mut html = Html::new();
        html.raw("<p").attribute("title", "a\"b'").raw(">").text("<script>&").raw("</p>");
        assert_eq!(html.into_string(), "<p title=\"a&quot;b&#39;\">&lt;script&gt;&amp;</p>");
    }
}
