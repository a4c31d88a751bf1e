//! The filters, tests, methods and functions that chat templates may use, each charging the budget for what it does.

use minijinja::filters as f;
use minijinja::tests as t;
use minijinja::value::{Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

use super::template_budget::{NODE_BYTES, charge, charge_deep, check_nesting, materialize, shallow_weight};

/// The error behind `raise_exception`.
#[derive(Debug)]
pub(super) struct Refused(pub String);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

/// Functions that templates call by name; requests cannot redefine them.
pub(super) const FUNCTIONS: [&str; 5] = ["namespace", "dict", "range", "raise_exception", "strftime_now"];

type Args = Rest<ValueOrKwargs>;

/// What a call is charged before it runs.
#[derive(Debug, Clone, Copy)]
enum Cost {
    /// It looks at the value, not at what is in it.
    Shallow,
    /// It walks its arguments this many times.
    Deep(u32),
    /// It joins many texts with a separator.
    Join,
    /// It puts a text in place of each match.
    Replace,
    /// It makes a value of each piece.
    Split,
    /// It puts spaces before each line.
    Indent,
}

/// Gives `env` everything that templates may use.
pub(super) fn install(env: &mut Environment) {
    install_filters(env);
    install_tests(env);
    env.set_unknown_method_callback(call_method);
    env.add_function("namespace", |state: &mut State, args: Args| {
        let args = args.into_values();
        args.iter().try_for_each(|value| check_nesting(state, value))?;
        Value::from_function(minijinja::functions::namespace).call(state, &args)
    });
    env.add_function("dict", |state: &mut State, args: Args| {
        let args = args.into_values();
        args.iter().try_for_each(|value| check_nesting(state, value))?;
        Value::from_function(minijinja::functions::dict).call(state, &args)
    });
    env.add_function("range", |state: &mut State, args: Args| {
        let args = args.into_values();
        let range = Value::from_function(minijinja::functions::range).call(state, &args)?;
        materialize(state, range)
    });
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Refused(message)))
    });
    env.add_function("strftime_now", strftime_now);
}

/// The current date and time in UTC.
fn strftime_now(format: &str) -> Result<String, Error> {
    use std::fmt::Write;
    let mut text = String::new();
    write!(text, "{}", chrono::Utc::now().format(format)).map_err(|_| {
        Error::new(ErrorKind::InvalidOperation, format!("strftime_now: '{format}' is not a date format"))
    })?;
    Ok(text)
}

fn install_filters(env: &mut Environment) {
    let mut add = |name: &'static str, cost: Cost, filter: Value| {
        env.add_filter(name, move |state: &mut State, args: Args| {
            let args = args.into_values();
            charge_call(state, cost, &args)?;
            let result = filter.call(state, &args)?;
            materialize(state, result)
        });
    };
    macro_rules! filters {
        ($($name:ident $(as $alias:literal)? : $cost:expr;)*) => {$(
            add(stringify!($name), $cost, Value::from_function(f::$name));
            $(add($alias, $cost, Value::from_function(f::$name));)?
        )*};
    }
    filters! {
        abs: Cost::Deep(1);
        attr: Cost::Shallow;
        bool: Cost::Shallow;
        capitalize: Cost::Deep(3);
        default as "d": Cost::Shallow;
        dictsort: Cost::Deep(8);
        escape as "e": Cost::Deep(6);
        first: Cost::Shallow;
        float: Cost::Deep(1);
        indent: Cost::Indent;
        int: Cost::Deep(1);
        items: Cost::Shallow;
        join: Cost::Join;
        last: Cost::Shallow;
        length as "count": Cost::Shallow;
        lines: Cost::Split;
        list: Cost::Shallow;
        lower: Cost::Deep(3);
        map: Cost::Shallow;
        max: Cost::Deep(2);
        min: Cost::Deep(2);
        reject: Cost::Shallow;
        rejectattr: Cost::Shallow;
        replace: Cost::Replace;
        reverse: Cost::Shallow;
        round: Cost::Deep(1);
        safe: Cost::Deep(1);
        select: Cost::Shallow;
        selectattr: Cost::Shallow;
        sort: Cost::Deep(16);
        split: Cost::Split;
        string: Cost::Deep(2);
        sum: Cost::Deep(2);
        title: Cost::Deep(3);
        trim: Cost::Deep(1);
        unique: Cost::Deep(8);
        upper: Cost::Deep(3);
    }
    env.add_filter("tojson", super::template_json::to_json);
}

fn install_tests(env: &mut Environment) {
    env.add_test("iterable", is_iterable);
    macro_rules! tests {
        ($cost:expr; $($name:literal => $test:ident,)*) => {$({
            let test = Value::from_function(t::$test);
            env.add_test($name, move |state: &mut State, args: Args| {
            let args = args.into_values();
                charge_call(state, $cost, &args)?;
                test.call(state, &args)
            });
        })*};
    }
    tests! { Cost::Shallow;
        "boolean" => is_boolean, "defined" => is_defined, "even" => is_even, "false" => is_false, "float" => is_float,
        "integer" => is_integer, "int" => is_integer, "mapping" => is_mapping,
        "none" => is_none, "number" => is_number, "odd" => is_odd, "sequence" => is_sequence, "string" => is_string,
        "true" => is_true, "undefined" => is_undefined, "divisibleby" => is_divisibleby,
    }
    tests! { Cost::Deep(1);
        "eq" => is_eq, "equalto" => is_eq, "==" => is_eq, "ne" => is_ne, "!=" => is_ne, "lt" => is_lt,
        "lessthan" => is_lt, "<" => is_lt, "le" => is_le, "<=" => is_le, "gt" => is_gt, "greaterthan" => is_gt,
        ">" => is_gt, "ge" => is_ge, ">=" => is_ge, "in" => is_in, "lower" => is_lower, "upper" => is_upper,
        "startingwith" => is_startingwith, "endingwith" => is_endingwith, "sameas" => is_sameas,
    }
}

/// As in Python, `none` cannot be iterated; templates test `tools is iterable`.
fn is_iterable(value: &Value) -> bool {
    !value.is_none() && t::is_iterable(value)
}

/// Python's methods of strings, lists and maps.
fn call_method(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let all: Vec<Value> = std::iter::once(value).chain(args).cloned().collect();
    let cost = match method {
        // A separator joins the values of its argument; the filter has them the other way round.
        "join" => return join_method(state, value, args),
        "replace" => Cost::Replace,
        "split" | "splitlines" => Cost::Split,
        "upper" | "lower" | "title" | "capitalize" => Cost::Deep(3),
        "startswith" | "endswith" | "get" | "items" | "keys" | "values" => Cost::Shallow,
        "format" => return format_method(state, value, args),
        "strip" | "lstrip" | "rstrip" => {
            let text_bytes = value.as_str().map_or(0, str::len) as u64;
            let num_chars = args.first().and_then(Value::as_str).map_or(1, str::len) as u64;
            charge(state, text_bytes.saturating_mul(num_chars) / 8)?;
            Cost::Deep(1)
        }
        _ => Cost::Deep(1),
    };
    args.iter().try_for_each(|value| charge_deep(state, value))?;
    charge_call(state, cost, &all)?;
    let result = pycompat::unknown_method_callback(state, value, method, args)?;
    materialize(state, result)
}

fn join_method(state: &mut State, separator: &Value, args: &[Value]) -> Result<Value, Error> {
    if let [values] = args {
        charge_call(state, Cost::Join, &[values.clone(), separator.clone()])?;
    }
    pycompat::unknown_method_callback(state, separator, "join", args)
}

/// `str.format` without field widths, which could ask for any length.
fn format_method(state: &mut State, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let template = value.as_str().unwrap_or_default();
    if template.contains(':') {
        return Err(Error::new(ErrorKind::InvalidOperation, "format: field formats are not available"));
    }
    charge_deep(state, value)?;
    for _ in template.matches('{') {
        args.iter().try_for_each(|value| charge_deep(state, value))?;
    }
    pycompat::unknown_method_callback(state, value, "format", args)
}

fn charge_call(state: &mut State, cost: Cost, args: &[Value]) -> Result<(), Error> {
    let Some((value, rest)) = args.split_first() else { return Ok(()) };
    let text = value.as_str().unwrap_or_default();
    let text_bytes = text.len() as u64;
    let argument = |i: usize| rest.get(i).and_then(Value::as_str);
    match cost {
        // A string costs nothing to look at; one that is walked is as long as itself.
        Cost::Shallow => {
            charge(state, if value.kind() == ValueKind::String { NODE_BYTES } else { shallow_weight(value) / 4 })
        }
        Cost::Deep(times) => (0..times).try_for_each(|_| args.iter().try_for_each(|value| charge_deep(state, value))),
        Cost::Join => {
            charge_deep(state, value)?;
            let separator_bytes = argument(0).map_or(0, str::len) as u64;
            let count = if text.is_empty() { value.len().unwrap_or(0) as u64 } else { text_bytes };
            charge(state, (separator_bytes + NODE_BYTES).saturating_mul(count))
        }
        Cost::Replace => {
            let (old, new) = (argument(0).unwrap_or_default(), argument(1).unwrap_or_default());
            charge_deep(state, value)?;
            charge(state, (text.matches(old).count() as u64).saturating_mul(new.len() as u64))
        }
        Cost::Split => {
            charge_deep(state, value)?;
            let num_pieces = match argument(0) {
                Some(separator) => text.matches(separator).count(),
                None => text.split_whitespace().count(),
            };
            charge(state, NODE_BYTES * (num_pieces as u64 + 1))
        }
        Cost::Indent => {
            charge_deep(state, value)?;
            let named = rest.last().filter(|last| last.is_kwargs()).and_then(|kwargs| kwargs.get_attr("width").ok());
            let width = named.as_ref().and_then(Value::as_usize).or_else(|| rest.first().and_then(Value::as_usize));
            let num_lines = text.matches('\n').count() as u64 + 1;
            charge(state, num_lines.saturating_mul(width.unwrap_or(4) as u64))
        }
    }
}
