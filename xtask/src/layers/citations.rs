//! Owns how a safety comment cites: numbers of duties, points and invariants, and names in backticks.

/// What stands in backticks and is an identifier or a path.
pub(super) fn names(text: &str) -> impl Iterator<Item = &str> {
    let quoted = text.split('`').skip(1).step_by(2).map(|name| name.trim_end_matches("()"));
    quoted.filter(|name| {
        name.split("::").all(|part| {
            part.chars().all(|c| c.is_alphanumeric() || c == '_')
                && part.starts_with(|c: char| c.is_alphabetic() || c == '_')
        })
    })
}

/// The numbers after each of `words`: of "duties 1 and 2", and of "duties 1-3" 1 and 3.
pub(super) fn cited(text: &str, words: &[&str]) -> Vec<u8> {
    let parts: Vec<&str> = text.split([' ', '(', '-']).filter(|part| !part.is_empty()).collect();
    let mut numbers = Vec::new();
    for (at, _) in parts.iter().enumerate().filter(|(_, part)| words.contains(part)) {
        for part in &parts[at + 1..] {
            if let Ok(number) = part.trim_end_matches([',', ';', '.', ':', ')']).parse() {
                numbers.push(number);
                if part.ends_with([';', '.', ':', ')']) {
                    break;
                }
            } else if !["and", "to", "or"].contains(part) {
                break;
            }
        }
    }
    numbers
}

/// The numbers of "(1)", and of the points "1:" and "1." at the start of a text or after a semicolon.
pub(super) fn points(text: &str) -> Vec<u8> {
    let parts: Vec<&str> = text.split_whitespace().collect();
    let mut numbers = Vec::new();
    for (at, part) in parts.iter().enumerate() {
        let part = part.trim_end_matches([',', ';', '.']);
        let in_brackets =
            part.strip_prefix('(').and_then(|part| part.trim_end_matches(':').strip_suffix(')'));
        let is_start = at == 0 || parts[at - 1].ends_with([';', '.']);
        let point = parts[at].strip_suffix([':', '.']).filter(|_| is_start);
        numbers.extend(in_brackets.or(point).and_then(|number| number.parse::<u8>().ok()));
    }
    numbers
}

/// The invariants that have a letter, as (H1).
pub(super) fn labels(text: &str) -> impl Iterator<Item = &str> {
    text.split(['(', ')', ' ', ',', ';', '.', ':']).filter(|part| {
        let mut letters = part.chars();
        letters.next().is_some_and(|c| c.is_ascii_uppercase())
            && letters.next().is_some_and(|c| c.is_ascii_digit())
            && letters.next().is_none()
    })
}
