//! Which known word a misspelt one may stand for. Pure.

/// The candidate that is most like a word, if one is like it enough: letters that differ, are missing, too many or
/// exchanged cost one each, case nothing, and a quarter of the word may be wrong. Of equals the first.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    let most = (word.chars().count() / 4).max(1);
    let with_distance = candidates
        .into_iter()
        .map(|candidate| (distance(&word, &candidate.to_lowercase()), candidate));
    let near = with_distance.filter(|(distance, _)| *distance <= most);
    near.min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// How many letters have to be put in, left out, replaced or exchanged with the next one (optimal string alignment).
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=other.len()).collect();
    let mut previous = None;
    for (row, letter) in one.chars().enumerate() {
        let mut current = vec![row + 1];
        for (column, at) in other.iter().enumerate() {
            let replaced = last[column] + usize::from(letter != *at);
            let mut least = replaced.min(last[column + 1] + 1).min(current[column] + 1);
            let is_exchanged =
                column > 0 && previous == Some(*at) && other[column - 1] == letter && row > 0;
            if is_exchanged {
                least = least.min(before_last[column - 1] + 1);
            }
            current.push(least);
        }
        before_last = std::mem::replace(&mut last, current);
        previous = Some(letter);
    }
    last[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_near_if_few_letters_are_wrong() {
        let kinds = ["Service", "Endpoints", "EndpointSlice", "Node"];
        let check = |word: &str, expected: Option<&str>| {
            assert_eq!(nearest(word, kinds), expected, "{word}");
        };
        check("service", Some("Service"));
        check("Services", Some("Service"));
        check("Sevrice", Some("Service"));
        check("endpoint", Some("Endpoints"));
        check("EndpointsSlice", Some("EndpointSlice"));
        check("Endpointslices", Some("EndpointSlice"));
        check("Pod", None);
        check("ServiceAccount", None);
        check("Secret", None);
        check("", None);
    }

    #[test]
    fn distances_count_letters() {
        for (one, other, expected) in [
            ("web", "web", 0),
            ("web", "wbe", 1),
            ("web", "we", 1),
            ("", "abc", 3),
            ("abcd", "badc", 2),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(one, other), expected, "{one} {other}");
            assert_eq!(distance(other, one), expected, "{other} {one}");
        }
    }
}
