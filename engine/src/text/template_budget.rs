//! Bounds what one rendering of a chat template may cost.
//!
//! minijinja's fuel counts instructions, but one `x ~ x` may copy gigabytes, one comparison may walk a structure that
//! shares its parts 2^40 times, and a list nested 10^5 deep overflows the stack when it is dropped. So every rendering
//! has a budget of work in bytes, and a compiled template is rewritten before it runs: each instruction whose cost
//! depends on its operands is preceded by one that charges the budget. Filters and methods charge in
//! [`super::template_builtins`].
//!
//! This uses minijinja's `unstable_machinery`; the workspace pins the exact version for it.

use minijinja::machinery::{Instruction, Instructions, Token, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{Environment, Error, ErrorKind, State, Value};

/// Work in bytes that one rendering of a chat template may do: text that it copies or prints, and
/// a fixed weight for each element of a list or map that it walks.
pub const MAX_TEMPLATE_WORK_BYTES: u64 = 32 << 20;
/// Instructions that one rendering may execute.
pub(super) const MAX_INSTRUCTIONS: u64 = 1_000_000;
/// What one value weighs beside its text.
pub(super) const NODE_BYTES: u64 = 32;
/// How deep lists and maps may nest: printing, comparing and dropping them recurse.
const MAX_NESTING: usize = 150;
/// Tokens of one tag. The compiler recurses over a chain of operators, and folds constants at each level of it.
const MAX_TAG_TOKENS: usize = 600;
/// `elif` tags of one template: the parser recurses over them without a guard.
const MAX_ELIF_TAGS: usize = 300;
/// Copies of a constant string that a template may ask for; the compiler makes them before any budget exists.
const MAX_CONSTANT_COPIES: u64 = 1000;

const CHARGE_DEEP: &str = "\0charge-deep";
const CHARGE_SHALLOW: &str = "\0charge-shallow";
const CHECK_NESTING: &str = "\0check-nesting";
const CHECK_STORED: &str = "\0check-stored";
const MATERIALIZE: &str = "\0materialize";
const MULTIPLY: &str = "\0multiply";

struct Budget {
    left: u64,
}

fn error(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// Takes `bytes` from the rendering's budget.
pub(super) fn charge(state: &mut State, bytes: u64) -> Result<(), Error> {
    let budget = state.get_or_insert_extension(Budget { left: MAX_TEMPLATE_WORK_BYTES });
    match budget.left.checked_sub(bytes) {
        Some(left) => {
            budget.left = left;
            Ok(())
        }
        None => Err(error(format!("the template needs more than {} MiB of work", MAX_TEMPLATE_WORK_BYTES >> 20))),
    }
}

/// Takes what a walk over all of `value` costs: its text and its nodes, each as often as it is reached.
pub(super) fn charge_deep(state: &mut State, value: &Value) -> Result<(), Error> {
    walk(value, 0, &mut |value| charge(state, weight(value)))
}

/// Takes what `value` itself costs, not the values in it.
pub(super) fn charge_shallow(state: &mut State, value: &Value) -> Result<(), Error> {
    charge(state, shallow_weight(value))
}

/// What a copy of `value` costs when the values in it are shared.
pub(super) fn shallow_weight(value: &Value) -> u64 {
    match value.kind() {
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable => value.len().map_or(0, |len| len as u64) * NODE_BYTES,
        _ => weight(value),
    }
}

fn weight(value: &Value) -> u64 {
    NODE_BYTES + value.as_str().map_or(0, |text| text.len() as u64)
}

fn walk(value: &Value, depth: usize, visit: &mut dyn FnMut(&Value) -> Result<(), Error>) -> Result<(), Error> {
    visit(value)?;
    let is_map = value.kind() == ValueKind::Map;
    if !is_map && !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
        return Ok(());
    }
    if depth == MAX_NESTING {
        return Err(error(format!("lists and maps nest deeper than {MAX_NESTING} levels")));
    }
    for key in value.try_iter()? {
        if is_map {
            walk(&value.get_item(&key)?, depth + 1, visit)?;
        }
        walk(&key, depth + 1, visit)?;
    }
    Ok(())
}

/// Refuses what nests too deep, and namespaces: a namespace inside a value could come to hold that value.
pub(super) fn check_nesting(state: &mut State, value: &Value) -> Result<(), Error> {
    walk(value, 0, &mut |value| {
        if is_namespace(value) {
            return Err(error("a namespace cannot be kept inside a list, a map or a namespace"));
        }
        charge(state, NODE_BYTES)
    })
}

fn is_namespace(value: &Value) -> bool {
    value.as_object().is_some_and(|object| object.type_name().ends_with("Namespace"))
}

/// Turns a lazy sequence into a list: lazy ones stacked on each other would recurse.
pub(super) fn materialize(state: &mut State, value: Value) -> Result<Value, Error> {
    let is_list = value.is_tuple() || value.downcast_object_ref::<Vec<Value>>().is_some();
    if is_list || !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
        return Ok(value);
    }
    let mut items = Vec::new();
    for item in value.try_iter()? {
        charge(state, NODE_BYTES)?;
        items.push(item);
    }
    Ok(Value::from(items))
}

fn multiply(state: &mut State, left: &Value, right: &Value) -> Result<Value, Error> {
    let number = |value: &Value| f64::try_from(value.clone()).ok();
    if let (Some(a), Some(b)) = (left.as_i64(), right.as_i64()) {
        return a.checked_mul(b).map(Value::from).ok_or_else(|| error(format!("{a} * {b} overflows")));
    }
    if let (Some(a), Some(b)) = (number(left), number(right)) {
        return Ok(Value::from(a * b));
    }
    let (repeated, count) = if left.is_number() { (right, left) } else { (left, right) };
    let count = count.as_i64().map(|count| usize::try_from(count).unwrap_or(0));
    let count = count.ok_or_else(|| error(format!("cannot multiply {} and {}", left.kind(), right.kind())))?;
    charge(state, shallow_weight(repeated).saturating_mul(count as u64))?;
    if let Some(text) = repeated.as_str() {
        return Ok(Value::from(text.repeat(count)));
    }
    let items: Vec<Value> = repeated.try_iter()?.collect();
    let len = items.len() * count;
    Ok(Value::from(items.into_iter().cycle().take(len).collect::<Vec<_>>()))
}

/// Makes an environment's renderings run under the budget.
pub(super) fn install(env: &mut Environment) {
    env.set_fuel(Some(MAX_INSTRUCTIONS));
    // A macro call counts four levels; each takes several KiB of stack.
    env.set_recursion_limit(200);
    env.set_formatter(|out, state, value| {
        charge_deep(state, value)?;
        match value.as_str() {
            Some(text) => out.write_str(text).map_err(Error::from),
            None => write!(out, "{value}").map_err(Error::from),
        }
    });
    env.add_filter(CHARGE_DEEP, |state: &mut State, value: Value| charge_deep(state, &value).map(|()| value));
    env.add_filter(CHARGE_SHALLOW, |state: &mut State, value: Value| charge_shallow(state, &value).map(|()| value));
    env.add_filter(CHECK_NESTING, |state: &mut State, value: Value| check_nesting(state, &value).map(|()| value));
    env.add_filter(CHECK_STORED, |value: Value| match is_namespace(&value) {
        true => Err(error("a namespace cannot be kept inside a namespace")),
        false => Ok(value),
    });
    env.add_filter(MATERIALIZE, materialize);
    env.add_filter(MULTIPLY, |state: &mut State, left: Value, right: Value| multiply(state, &left, &right));
}

fn filter<'s>(name: &'static str, num_args: u16) -> Instruction<'s> {
    // The highest local id means that the filter is looked up each time.
    Instruction::ApplyFilter(name, Some(num_args), u8::MAX)
}

/// What runs in place of `instruction`; `None` leaves it as it is.
fn metered<'s>(instruction: &Instruction<'s>) -> Result<Option<Vec<Instruction<'s>>>, &'static str> {
    use Instruction as I;
    let own = instruction.clone();
    let deep = || filter(CHARGE_DEEP, 1);
    let shallow = || filter(CHARGE_SHALLOW, 1);
    Ok(Some(match instruction {
        I::EmitRaw(text) => vec![I::LoadConst(Value::from(*text)), I::Emit],
        I::Mul => vec![filter(MULTIPLY, 2)],
        I::Add => vec![shallow(), I::Swap, shallow(), I::Swap, own, filter(MATERIALIZE, 1)],
        I::StringConcat | I::Eq | I::Ne | I::Gt | I::Gte | I::Lt | I::Lte | I::In | I::CompareAndPreserve(_) => {
            vec![deep(), I::Swap, deep(), I::Swap, own]
        }
        I::GetItem => vec![deep(), own],
        I::Slice => vec![own, shallow(), filter(MATERIALIZE, 1)],
        I::BuildList(_) | I::BuildTuple(_) | I::BuildMap(_) => vec![own, filter(CHECK_NESTING, 1)],
        I::SetAttr(_) => vec![I::Swap, filter(CHECK_STORED, 1), I::Swap, own],
        I::PushLoop(_) => vec![shallow(), own],
        I::UnpackLists(_) | I::MergeKwargs(_) => return Err("arguments cannot be unpacked with '*' or '**'"),
        I::CallBlock(_) | I::LoadBlocks | I::Include(_) | I::ExportLocals | I::FastSuper => {
            return Err("blocks, includes and imports are not available");
        }
        I::PushAutoEscape => return Err("autoescape is not available"),
        _ => return Ok(None),
    }))
}

/// Rewrites compiled instructions so that they charge the budget. Each metered instruction becomes a jump to its
/// replacement behind the end, so all other jump targets stay valid.
///
/// Errors: an instruction whose cost cannot be bounded, with its line.
pub(super) fn meter(instructions: &mut Instructions<'_>) -> Result<(), (Option<usize>, &'static str)> {
    let mut replaced = Vec::new();
    let mut end = 0;
    while let Some(instruction) = instructions.get(end) {
        let replacement = metered(instruction).map_err(|message| (instructions.get_line(end), message))?;
        if let Some(replacement) = replacement {
            replaced.push((end, replacement));
        }
        end += 1;
    }
    // Running off the template's own end must not run into the replacements.
    let added: u32 = replaced.iter().map(|(_, replacement)| replacement.len() as u32 + 1).sum();
    instructions.add(Instruction::Jump(end + 1 + added));
    for (at, replacement) in replaced {
        let line = instructions.get_line(at).and_then(|line| u16::try_from(line).ok()).unwrap_or(u16::MAX);
        let mut start = None;
        for instruction in replacement.into_iter().chain([Instruction::Jump(at + 1)]) {
            let added_at = instructions.add_with_line(instruction, line);
            start.get_or_insert(added_at);
        }
        if let (Some(start), Some(instruction)) = (start, instructions.get_mut(at)) {
            *instruction = Instruction::Jump(start);
        }
    }
    Ok(())
}

/// Refuses source that would be costly before any budget exists, in the compiler: it recurses over operators, and
/// evaluates constant expressions, repetition included.
///
/// Errors: the line and what is wrong there.
pub(super) fn check_source(source: &str, syntax: SyntaxConfig) -> Result<(), (Option<usize>, String)> {
    let mut tag: Vec<Token<'_>> = Vec::new();
    let mut num_elif_tags = 0;
    for item in tokenize(source, false, syntax) {
        // The compiler reports syntax errors better.
        let Ok((token, span)) = item else { return Ok(()) };
        let line = Some(usize::from(span.start_line));
        match token {
            Token::VariableStart | Token::BlockStart | Token::TemplateData(_) => tag.clear(),
            Token::VariableEnd | Token::BlockEnd => {
                if (0..tag.len()).any(|at| matches!(tag[at], Token::Mul) && repeats_constant(&tag, at)) {
                    return Err((line, "a constant is repeated: repeat a variable instead".into()));
                }
            }
            token => {
                num_elif_tags += usize::from(tag.is_empty() && matches!(token, Token::Ident("elif")));
                tag.push(token);
            }
        }
        if num_elif_tags > MAX_ELIF_TAGS {
            return Err((line, format!("the template has more than {MAX_ELIF_TAGS} elif tags")));
        }
        if tag.len() > MAX_TAG_TOKENS {
            return Err((line, format!("a tag has more than {MAX_TAG_TOKENS} words")));
        }
    }
    Ok(())
}

/// Whether the `*` at `at` may have constant operands that the compiler would multiply, other than two numbers or a
/// string and a small number.
fn repeats_constant(tag: &[Token<'_>], at: usize) -> bool {
    let (before, after) = (&tag[..at], &tag[at + 1..]);
    let left = before.iter().rev().scan(0, |depth, token| operand_part(token, false, depth)).collect::<Vec<_>>();
    let right = after.iter().scan(0, |depth, token| operand_part(token, true, depth)).collect::<Vec<_>>();
    let is_constant = |operand: &[&Token<'_>]| !operand.iter().any(|token| is_name(token));
    if !is_constant(&left) || !is_constant(&right) {
        return false;
    }
    let small = |operand: &[&Token<'_>]| matches!(operand, [Token::Int(n)] if *n <= MAX_CONSTANT_COPIES);
    let text = |operand: &[&Token<'_>]| matches!(operand, [Token::Str(_) | Token::String(_)]);
    let number = |operand: &[&Token<'_>]| {
        use Token as T;
        let in_number = |t: &Token<'_>| matches!(t, T::Int(_) | T::Float(_) | T::Mul | T::Div | T::FloorDiv | T::Mod);
        operand.iter().all(|token| in_number(token))
    };
    let allowed = (number(&left) && number(&right)) || (small(&left) && text(&right)) || (text(&left) && small(&right));
    !allowed
}

/// Passes on the tokens of the operand next to a `*`, from the operator outwards; ends at a bracket that encloses it,
/// a comma or an operator that binds less.
fn operand_part<'t, 's>(token: &'t Token<'s>, forward: bool, depth: &mut i32) -> Option<&'t Token<'s>> {
    let opens = matches!(token, Token::ParenOpen | Token::BracketOpen | Token::BraceOpen);
    let closes = matches!(token, Token::ParenClose | Token::BracketClose | Token::BraceClose);
    let (enters, leaves) = if forward { (opens, closes) } else { (closes, opens) };
    *depth += i32::from(enters) - i32::from(leaves);
    let ends = matches!(token, Token::Comma | Token::Colon | Token::Assign | Token::Tilde | Token::Plus | Token::Minus)
        || matches!(token, Token::Eq | Token::Ne | Token::Gt | Token::Gte | Token::Lt | Token::Lte);
    (*depth > 0 || (*depth == 0 && !ends)).then_some(token)
}

/// Whether the token makes an operand depend on something at run time.
fn is_name(token: &Token<'_>) -> bool {
    matches!(token, Token::Ident(name) if !matches!(*name, "true" | "false" | "none" | "True" | "False" | "None"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constant_repetition_is_found() {
        let check = |source: &str, ok: bool| {
            let syntax = SyntaxConfig::default();
            assert_eq!(check_source(source, syntax).is_ok(), ok, "{source}");
        };
        check("{{ '=' * 40 }}", true);
        check("{{ 2 * 3 * 4 // 5 }}", true);
        check("{{ x * 100000000 }}", true);
        check("{{ ('a' ~ x) * 5 }}", true);
        check("{{ (i + 1) * 2 + j * (3 + 4) }}", true);
        check("{{ 'a' * 100000000 }}", false);
        check("{{ 'a' * 1000 * 1000 }}", false);
        check("{{ ('a') * 1000 }}", false);
        check("{{ (true,) * 100000000 }}", false);
        check("{{ f([1] * 100000000) }}", false);
        check("{{ {'a': 3 * 'x' * 99999 } }}", false);
        check("{{ -1 * 'a' * (9999) }}", false);
        check(&format!("{{{{ {}1 }}}}", "1+".repeat(400)), false);
    }
}
