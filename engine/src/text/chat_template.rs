//! Chat templates: messages to the text of a prompt, as Hugging Face's `apply_chat_template` does.

use std::collections::BTreeMap;
use std::sync::Arc;

use minijinja::machinery::{CodeGenerator, Instructions, eval, make_string_output, parse};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};
use serde::Serialize;
use serde_json::Map;

use super::error::{TextError, contain_panic, one_line};
use super::{template_budget, template_builtins};

/// Bytes of source that a template may have; the longest known one has 17 KiB.
pub const MAX_TEMPLATE_BYTES: usize = 64 << 10;

/// What serde_json's parser takes, so no request is refused for it; values made in code may be deeper.
const MAX_JSON_NESTING: usize = 130;

const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] \
    + '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// A model's chat template. Cheap to clone.
///
/// The template comes with the model, the messages and `kwargs` with a request. Neither can read anything but what is
/// passed in. A rendering executes at most a million instructions and does at most
/// [`MAX_TEMPLATE_WORK_BYTES`](super::MAX_TEMPLATE_WORK_BYTES) of work, so its time and memory are bounded whatever the
/// template says.
///
/// ```
/// use aisp_engine::text::{ChatContext, ChatMessage, ChatTemplate};
/// let context = ChatContext { add_generation_prompt: true, ..ChatContext::default() };
/// let text = ChatTemplate::chatml()?.render(&[ChatMessage::new("user", "Hi")], &context)?;
/// assert_eq!(text, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
/// # Ok::<(), aisp_engine::text::TextError>(())
/// ```
#[derive(Clone)]
pub struct ChatTemplate {
    shared: Arc<Shared>,
}

struct Shared {
    env: Environment<'static>,
    syntax: SyntaxConfig,
    source: String,
}

/// One message of a chat.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`, `tool`.
    pub role: String,
    /// Its text; parts of type `text` are joined by the caller.
    pub content: String,
    /// Other fields that templates read, as `tool_calls` or `reasoning_content`.
    #[serde(flatten)]
    pub extra: Map<String, serde_json::Value>,
}

impl ChatMessage {
    /// A message without other fields.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), extra: Map::new() }
    }
}

/// What a template sees beside the messages.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChatContext {
    /// Whether the text ends where the assistant's answer begins.
    pub add_generation_prompt: bool,
    /// Names of special tokens, as `bos_token`, from the tokenizer's configuration.
    pub special_tokens: Vec<(String, String)>,
    /// Tools in OpenAI's form.
    pub tools: Option<serde_json::Value>,
    /// The request's `chat_template_kwargs`, as `enable_thinking`. They cannot replace what is set above.
    pub kwargs: Map<String, serde_json::Value>,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("source", &self.shared.source).finish()
    }
}

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// Errors: source that is too long or malformed, or uses what has no bounded cost, with its line.
    pub fn new(source: &str) -> Result<Self, TextError> {
        let malformed = |line, message| TextError::MalformedTemplate { line, message };
        if source.len() > MAX_TEMPLATE_BYTES {
            let message = format!("it has {} bytes, at most {MAX_TEMPLATE_BYTES} are taken", source.len());
            return Err(malformed(None, message));
        }
        let source = without_generation_tags(source);
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        let syntax = syntax.map_err(|error| malformed(None, one_line(&error.to_string())))?;
        template_budget::check_source(&source, syntax.clone()).map_err(|(line, message)| malformed(line, message))?;
        let mut env = Environment::empty();
        template_budget::install(&mut env);
        template_builtins::install(&mut env);
        let template = Self { shared: Arc::new(Shared { env, syntax, source }) };
        contain_panic("the template compiler", || Ok(template.compile().map(|_| ())))
            .map_err(|message| malformed(None, message))??;
        Ok(template)
    }

    /// The ChatML template, for models whose files bring none: `<|im_start|>role\ncontent<|im_end|>\n`.
    ///
    /// Errors: none; it is compiled like any other, and the example above renders it.
    pub fn chatml() -> Result<Self, TextError> {
        Self::new(CHATML)
    }

    /// The source, as the model's files hold it but for `{% generation %}` tags.
    pub fn source(&self) -> &str {
        &self.shared.source
    }

    /// The prompt for `messages`.
    ///
    /// Errors: the template refuses the messages, fails on them, or exceeds its bounds; `kwargs` name what they may not
    /// set.
    ///
    /// Cost: compiles the template first, some 100 µs for a long one; the compiled form borrows its source.
    pub fn render(&self, messages: &[ChatMessage], context: &ChatContext) -> Result<String, TextError> {
        let root = context.root(messages)?;
        let failed = |message| TextError::TemplateFailed { line: None, message };
        contain_panic("the template engine", || Ok(self.render_root(root))).map_err(failed)?
    }

    fn render_root(&self, root: Value) -> Result<String, TextError> {
        let (instructions, blocks) = self.compile()?;
        let mut text = String::new();
        let mut output = make_string_output(&mut text);
        let done = eval(&self.shared.env, &instructions, root, &blocks, &mut output, AutoEscape::None);
        done.map(|_| ()).map_err(|error| render_error(&error))?;
        Ok(text)
    }

    fn compile(&self) -> Result<Compiled<'_>, TextError> {
        let malformed = |error: &Error| TextError::MalformedTemplate { line: error.line(), message: message_of(error) };
        let source = &self.shared.source;
        let ast = parse(source, "chat_template", self.shared.syntax.clone()).map_err(|error| malformed(&error))?;
        let mut generator = CodeGenerator::new("chat_template", source);
        generator.compile_stmt(&ast);
        let (mut instructions, blocks) = generator.finish();
        template_budget::meter(&mut instructions)
            .map_err(|(line, message)| TextError::MalformedTemplate { line, message: message.into() })?;
        Ok((instructions, blocks))
    }
}

/// A template's instructions and its (always empty) blocks.
type Compiled<'s> = (Instructions<'s>, BTreeMap<&'s str, Instructions<'s>>);

impl ChatContext {
    fn root(&self, messages: &[ChatMessage]) -> Result<Value, TextError> {
        let given = messages.iter().flat_map(|message| message.extra.values()).chain(&self.tools);
        if given.chain(self.kwargs.values()).any(|value| nests_deeper(value, MAX_JSON_NESTING)) {
            let message = format!("messages, tools and kwargs may nest at most {MAX_JSON_NESTING} levels deep");
            return Err(TextError::TemplateFailed { line: None, message });
        }
        let mut root = BTreeMap::from([
            ("messages", Value::from(Serde(messages))),
            ("add_generation_prompt", Value::from(self.add_generation_prompt)),
            ("tools", self.tools.as_ref().map_or(Value::from(()), |tools| Value::from(Serde(tools)))),
        ]);
        root.extend(self.special_tokens.iter().map(|(name, token)| (name.as_str(), Value::from(token.as_str()))));
        for (name, value) in &self.kwargs {
            if root.contains_key(name.as_str()) || template_builtins::FUNCTIONS.contains(&name.as_str()) {
                let message = one_line(&format!("chat_template_kwargs may not set '{name}'"));
                return Err(TextError::TemplateFailed { line: None, message });
            }
            root.insert(name, Value::from(Serde(value)));
        }
        Ok(Value::from(root))
    }
}

fn nests_deeper(value: &serde_json::Value, levels: usize) -> bool {
    let Some(below) = levels.checked_sub(1) else { return true };
    match value {
        serde_json::Value::Array(items) => items.iter().any(|item| nests_deeper(item, below)),
        serde_json::Value::Object(fields) => fields.values().any(|field| nests_deeper(field, below)),
        _ => false,
    }
}

/// Training marks answers with `{% generation %}`; for a prompt the marks mean nothing. They become conditions that
/// hold, so that lines and whitespace control stay.
fn without_generation_tags(source: &str) -> String {
    let mut rest = source;
    let mut text = String::with_capacity(source.len());
    while let Some(start) = rest.find("{%") {
        let inside = &rest[start + 2..];
        let Some(len) = inside.find("%}") else { break };
        let tag = &inside[..len];
        let replaced = match tag.trim_matches(['-', '+']).trim() {
            "generation" => tag.replace("generation", "if true"),
            "endgeneration" => tag.replace("endgeneration", "endif"),
            _ => tag.to_string(),
        };
        text.push_str(&rest[..start + 2]);
        text.push_str(&replaced);
        text.push_str("%}");
        rest = &inside[len + 2..];
    }
    text.push_str(rest);
    text
}

fn message_of(error: &Error) -> String {
    let kind = error.kind().to_string();
    match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => {
            format!("it executes more than {} instructions", template_budget::MAX_INSTRUCTIONS)
        }
        (_, Some(detail)) => one_line(&format!("{kind}: {detail}")),
        (_, None) => kind,
    }
}

fn render_error(error: &Error) -> TextError {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(refused) = cause.downcast_ref::<template_builtins::Refused>() {
            return TextError::TemplateRefused(one_line(&refused.0));
        }
        source = cause.source();
    }
    TextError::TemplateFailed { line: error.line(), message: message_of(error) }
}
