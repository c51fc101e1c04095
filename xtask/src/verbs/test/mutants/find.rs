//! The checks of the data plane, found in its sources.
//!
//! A check is a condition that refuses a packet: of an `if` whose branch ends in an error, in a
//! pass to the kernel, or in nothing (`None`, `false`, `0`); of an arm of a `match` with such a
//! result; of an `if` that returns a value just before a function ends in an error; of a `filter`.
//! Each part of a condition that refuses by itself is a check of its own.
//!
//! The headers in `common/src/wire` refuse nothing. They tell the data plane what a packet is: each
//! part of the result of a function that returns a `bool` is a check. If the result is a single
//! comparison, it is removed twice: as always true, and as always false.

use std::ops::Range;

use anyhow::Result;
use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};
use syn::{
    Arm, Attribute, BinOp, Block, Expr, ExprIf, ExprMethodCall, ImplItemFn, ItemFn, ItemImpl,
    ItemMod, Lit, Pat, ReturnType, Stmt, Type,
};

/// Folder of the sources whose functions tell what a packet is.
const PREDICATES: &str = "common/src/wire/";

/// A check, and the change of the source that removes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mutant {
    /// Path of the source, from the root of the repository.
    pub(super) file: String,
    /// Line of the check, from 1.
    pub(super) line: usize,
    /// Name of the function that has the check.
    pub(super) function: String,
    /// The condition in one line.
    pub(super) condition: String,
    /// Bytes of the source that are replaced.
    range: Range<usize>,
    /// The text that replaces them.
    replacement: String,
}

impl Mutant {
    /// The value that the condition gets.
    pub(super) fn value(&self) -> bool {
        self.replacement.starts_with("(true")
    }

    /// The source `text` of the file without the check.
    pub(super) fn apply(&self, text: &str) -> String {
        let before = text.get(..self.range.start).unwrap_or_default();
        let after = text.get(self.range.end..).unwrap_or_default();
        format!("{before}{}{after}", self.replacement)
    }
}

/// Finds the checks in the source `text` of `file`, in the order of the source.
///
/// # Errors
///
/// The source is not Rust.
pub(super) fn mutants(file: &str, text: &str) -> Result<Vec<Mutant>> {
    let syntax = syn::parse_file(text)
        .map_err(|error| anyhow::anyhow!("{file}:{}: {error}", error.span().start().line))?;
    let mut finder = Finder { file, text, function: String::new(), found: Vec::new() };
    finder.visit_file(&syntax);
    let mut found = finder.found;
    found.sort_by_key(|mutant| (mutant.range.start, mutant.range.end));
    found.dedup();
    Ok(found)
}

/// The value that a condition gets when its check is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Constant {
    /// The condition refuses if it is true.
    False,
    /// The condition refuses if it is false.
    True,
}

struct Finder<'a> {
    file: &'a str,
    text: &'a str,
    function: String,
    found: Vec<Mutant>,
}

impl Finder<'_> {
    /// Adds the checks of a condition.
    fn add(&mut self, condition: &Expr, constant: Constant) {
        let mut parts = Vec::new();
        split(condition, constant, &mut parts);
        for part in parts {
            self.add_part(part, constant);
        }
    }

    fn add_part(&mut self, part: &Expr, constant: Constant) {
        let span = part.span();
        let range = span.byte_range();
        let Some(code) = self.text.get(range.clone()) else { return };
        let replacement = match (constant, has_let(part)) {
            // A chain with `let` has no parentheses and no `||`.
            (Constant::False, true) => format!("false && {code}"),
            (Constant::False, false) => format!("(false && ({code}))"),
            (Constant::True, false) => format!("(true || ({code}))"),
            (Constant::True, true) => return,
        };
        self.found.push(Mutant {
            file: self.file.to_owned(),
            line: span.start().line,
            function: self.function.clone(),
            condition: one_line(code),
            range,
            replacement,
        });
    }

    /// Adds the checks of a function that tells what a packet is.
    fn add_predicate(&mut self, output: &ReturnType, block: &Block) {
        let Some(Stmt::Expr(condition, None)) = block.stmts.last() else { return };
        if !self.file.starts_with(PREDICATES) || !is_bool(output) || has_let(condition) {
            return;
        }
        let constants: &[Constant] = match condition {
            Expr::Binary(it) if matches!(it.op, BinOp::And(_)) => &[Constant::True],
            Expr::Binary(it) if matches!(it.op, BinOp::Or(_)) => &[Constant::False],
            _ => &[Constant::True, Constant::False],
        };
        for constant in constants {
            self.add(condition, *constant);
        }
    }

    /// Visits what is inside a function, with its name for the checks there.
    fn inside(&mut self, name: String, visit: impl FnOnce(&mut Self)) {
        let outer = std::mem::replace(&mut self.function, name);
        visit(self);
        self.function = outer;
    }
}

impl<'ast> Visit<'ast> for Finder<'_> {
    fn visit_item_mod(&mut self, node: &'ast ItemMod) {
        if !is_for_tests(&node.attrs) {
            visit::visit_item_mod(self, node);
        }
    }

    fn visit_item_impl(&mut self, node: &'ast ItemImpl) {
        if !is_for_tests(&node.attrs) {
            visit::visit_item_impl(self, node);
        }
    }

    fn visit_item_fn(&mut self, node: &'ast ItemFn) {
        self.inside(node.sig.ident.to_string(), |it| {
            it.add_predicate(&node.sig.output, &node.block);
            visit::visit_item_fn(it, node);
        });
    }

    fn visit_impl_item_fn(&mut self, node: &'ast ImplItemFn) {
        self.inside(node.sig.ident.to_string(), |it| {
            it.add_predicate(&node.sig.output, &node.block);
            visit::visit_impl_item_fn(it, node);
        });
    }

    fn visit_expr_if(&mut self, node: &'ast ExprIf) {
        let otherwise = node.else_branch.as_ref().map(|(_, branch)| &**branch);
        if ends_in_refusal(&node.then_branch) {
            self.add(&node.cond, Constant::False);
        } else if otherwise.is_some_and(is_refusal) {
            self.add(&node.cond, Constant::True);
        }
        visit::visit_expr_if(self, node);
    }

    fn visit_expr_method_call(&mut self, node: &'ast ExprMethodCall) {
        if node.method == "filter"
            && let Some(Expr::Closure(condition)) = node.args.first()
        {
            self.add(&condition.body, Constant::True);
        }
        visit::visit_expr_method_call(self, node);
    }

    fn visit_arm(&mut self, node: &'ast Arm) {
        if let Pat::Guard(guarded) = &node.pat
            && is_refusal(&node.body)
        {
            self.add(&guarded.guard, Constant::False);
        }
        visit::visit_arm(self, node);
    }

    fn visit_block(&mut self, node: &'ast Block) {
        // `if allowed { return Ok(value); } Err(reason)`
        if let [.., Stmt::Expr(Expr::If(check), _), Stmt::Expr(last, _)] = node.stmts.as_slice()
            && check.else_branch.is_none()
            && is_error(last)
            && returns(&check.then_branch)
            && !ends_in_refusal(&check.then_branch)
        {
            self.add(&check.cond, Constant::True);
        }
        visit::visit_block(self, node);
    }
}

/// Splits a condition into the parts that refuse by themselves.
fn split<'a>(condition: &'a Expr, constant: Constant, parts: &mut Vec<&'a Expr>) {
    if let Expr::Paren(inner) = condition {
        return split(&inner.expr, constant, parts);
    }
    if let Expr::Binary(binary) = condition
        && !has_let(condition)
    {
        let is_split = match constant {
            Constant::False => matches!(binary.op, BinOp::Or(_)),
            Constant::True => matches!(binary.op, BinOp::And(_)),
        };
        if is_split {
            split(&binary.left, constant, parts);
            split(&binary.right, constant, parts);
            return;
        }
    }
    parts.push(condition);
}

/// Whether a function returns a `bool`.
fn is_bool(output: &ReturnType) -> bool {
    let ReturnType::Type(_, kind) = output else { return false };
    matches!(&**kind, Type::Path(path) if path.path.is_ident("bool"))
}

/// Whether a condition has a `let`.
fn has_let(condition: &Expr) -> bool {
    match condition {
        Expr::Let(_) => true,
        Expr::Binary(binary) => has_let(&binary.left) || has_let(&binary.right),
        _ => false,
    }
}

/// The expression that a block ends with.
fn last(block: &Block) -> Option<&Expr> {
    match block.stmts.last() {
        Some(Stmt::Expr(expression, _)) => Some(expression),
        _ => None,
    }
}

fn ends_in_refusal(block: &Block) -> bool {
    last(block).is_some_and(is_refusal)
}

/// Whether a block ends with a `return`.
fn returns(block: &Block) -> bool {
    matches!(last(block), Some(Expr::Return(_)))
}

/// Whether an expression refuses a packet.
fn is_refusal(expression: &Expr) -> bool {
    match expression {
        Expr::Return(it) => it.expr.as_deref().is_some_and(is_no_result),
        Expr::Block(it) => ends_in_refusal(&it.block),
        other => is_error(other),
    }
}

/// Whether an expression is an error: `Err(…)`, or `return Err(…)`.
fn is_error(expression: &Expr) -> bool {
    match expression {
        Expr::Return(it) => it.expr.as_deref().is_some_and(is_error),
        Expr::Call(call) => is_name(&call.func, "Err"),
        _ => false,
    }
}

/// Whether a returned value says that there is no result: an error, `None`, `false`, `0`, a packet
/// that is passed to the kernel, or `Ok(false)`.
fn is_no_result(expression: &Expr) -> bool {
    match expression {
        Expr::Call(call) if is_name(&call.func, "Ok") => {
            call.args.first().is_some_and(|value| is_name(value, "Pass") || is_nothing(value))
        }
        other => is_error(other) || is_nothing(other),
    }
}

fn is_nothing(expression: &Expr) -> bool {
    match expression {
        Expr::Lit(literal) => match &literal.lit {
            Lit::Bool(value) => !value.value,
            Lit::Int(value) => value.base10_digits() == "0",
            _ => false,
        },
        other => is_name(other, "None"),
    }
}

/// Whether an expression is a path whose last name is `name`.
fn is_name(expression: &Expr, name: &str) -> bool {
    let Expr::Path(path) = expression else { return false };
    path.path.segments.last().is_some_and(|segment| segment.ident == name)
}

/// Whether an item has `#[cfg(test)]`.
fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Ident>().is_ok_and(|condition| condition == "test")
    })
}

/// Code with one space where it has any.
pub(super) fn one_line(code: &str) -> String {
    code.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The conditions in `body`, each with what replaces it.
    fn found(body: &str) -> Vec<(String, String)> {
        let text = format!("fn check() -> Result<(), Reason> {{ {body} }}");
        let found = mutants("a.rs", &text).expect("it is Rust");
        found.into_iter().map(|it| (it.condition, it.replacement)).collect()
    }

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    #[test]
    fn refusals_are_checks() {
        for refusal in ["return Err(x);", "return None;", "return 0;", "return Ok(Action::Pass);"] {
            assert_eq!(
                found(&format!("if a == b {{ {refusal} }} go()")),
                pairs(&[("a == b", "(false && (a == b))")]),
                "{refusal}"
            );
        }
        for other in ["return Ok(x);", "return 1;", "y = 1;", ""] {
            assert!(found(&format!("if a == b {{ {other} }} go()")).is_empty(), "{other}");
        }
    }

    #[test]
    fn each_part_that_refuses_is_a_check() {
        assert_eq!(
            found("if a || (b && c) || d { return Err(x); } go()"),
            pairs(&[
                ("a", "(false && (a))"),
                ("b && c", "(false && (b && c))"),
                ("d", "(false && (d))"),
            ])
        );
        assert_eq!(
            found("if a && b { return Ok(()); } Err(x)"),
            pairs(&[("a", "(true || (a))"), ("b", "(true || (b))")])
        );
        assert_eq!(found("if a { Ok(()) } else { Err(x) }"), pairs(&[("a", "(true || (a))")]));
    }

    #[test]
    fn chains_with_let_stay_chains() {
        assert_eq!(
            found("if let Some(a) = b && a == c { return Err(x); } go()"),
            pairs(&[("let Some(a) = b && a == c", "false && let Some(a) = b && a == c")])
        );
    }

    #[test]
    fn guards_of_arms_are_checks() {
        assert_eq!(
            found("match a { 1 if b => Err(x), 2 if c => Ok(()), _ => Ok(()) }"),
            pairs(&[("b", "(false && (b))")])
        );
    }

    #[test]
    fn filters_are_checks() {
        assert_eq!(
            found("find(a).filter(|it| it.b == c).map(|it| it.d)"),
            pairs(&[("it.b == c", "(true || (it.b == c))")])
        );
    }

    #[test]
    fn results_of_functions_of_headers_are_checks() {
        let text = "fn a() -> bool { let x = b; x == c && d }
            impl A { fn e(&self) -> bool { self.f || g } fn h(&self) -> bool { matches!(i, 1) } }
            #[cfg(test)] impl A { fn j(&self) -> bool { k } }
            fn l() -> u8 { m }";
        let found = |file| -> Vec<(String, String, bool)> {
            let all = mutants(file, text).expect("it is Rust");
            let tell = |it: Mutant| (it.function.clone(), it.condition.clone(), it.value());
            all.into_iter().map(tell).collect()
        };
        let wanted = [
            ("a", "x == c", true),
            ("a", "d", true),
            ("e", "self.f", false),
            ("e", "g", false),
            ("h", "matches!(i, 1)", true),
            ("h", "matches!(i, 1)", false),
        ];
        let wanted = wanted.map(|(name, part, value)| (name.to_owned(), part.to_owned(), value));
        assert_eq!(found("common/src/wire/a.rs"), wanted);
        assert!(found("common/src/datapath/a.rs").is_empty());
    }

    #[test]
    fn a_check_is_removed_and_nothing_else() {
        let text = "\
fn f() -> R { // ä
    if x.is_bad(
        1,
    ) {
        return Err(E);
    }
    go()
}
#[cfg(test)]
mod tests { fn g() -> R { if y { return Err(E); } go() } }
";
        let found = mutants("a.rs", text).expect("it is Rust");
        let [mutant] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((mutant.line, mutant.function.as_str()), (2, "f"));
        assert_eq!(mutant.condition, "x.is_bad( 1, )");
        let removed = "(false && (x.is_bad(\n        1,\n    )))";
        assert_eq!(mutant.apply(text), text.replace("x.is_bad(\n        1,\n    )", removed));
    }
}
