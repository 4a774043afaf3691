// Package language lists the words that the repository's text avoids. Its test
// finds them in code, contract and pages, and checks subjects of commits.
package language

import (
	_ "embed"
	"fmt"
	"strings"
)

//go:embed words.txt
var list string

// phrase is one or more words that text must not use.
type phrase struct {
	// text is in lower case, with one space between words.
	text string
	// instead says what to write.
	instead string
}

// words are the phrases of words.txt by their first word.
type words map[string][]phrase

// readWords reads words.txt.
func readWords() (words, error) {
	ws := words{}
	for line := range strings.Lines(list) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "#") {
			continue
		}
		texts, instead, ok := strings.Cut(line, "\t")
		if !ok {
			return nil, fmt.Errorf("words.txt: no tab in %q: want phrases, a tab, and what to write instead", line)
		}
		for text := range strings.SplitSeq(texts, ", ") {
			first, _, _ := strings.Cut(text, " ")
			ws[first] = append(ws[first], phrase{text, instead})
		}
	}
	return ws, nil
}

// check returns what to write instead of each phrase that a line must not use. It
// looks up each word of the line once: regular expressions over every line of the
// repository took half a minute.
func (ws words) check(line string) (found []string) {
	lower := strings.ToLower(line)
	for rest := lower; ; {
		start := strings.IndexFunc(rest, inWord)
		if start < 0 {
			return found
		}
		rest = rest[start:]
		end := endOfWord(rest)
		for _, p := range ws[rest[:end]] {
			after, ok := strings.CutPrefix(rest, p.text)
			if ok && endOfWord(after) == 0 {
				found = append(found, `"`+p.text+`": write `+p.instead)
			}
		}
		rest = rest[end:]
	}
}

// endOfWord returns the length of the word that text begins with, which may be 0.
func endOfWord(text string) int {
	end := strings.IndexFunc(text, func(r rune) bool { return !inWord(r) })
	if end < 0 {
		return len(text)
	}
	return end
}

func inWord(r rune) bool {
	return r == '_' || 'a' <= r && r <= 'z' || '0' <= r && r <= '9'
}
