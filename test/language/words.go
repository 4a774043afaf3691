// Package language lists the words that the repository's text avoids. Its test
// finds them in code, contract and pages, and checks subjects of commits.
package language

import (
	_ "embed"
	"fmt"
	"regexp"
	"strings"
)

//go:embed words.txt
var list string

// word is one that text must not use.
type word struct {
	pattern *regexp.Regexp
	// instead says what to write.
	instead string
}

// readWords reads words.txt.
func readWords() ([]word, error) {
	var words []word
	for line := range strings.Lines(list) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "#") {
			continue
		}
		pattern, instead, ok := strings.Cut(line, "\t")
		if !ok {
			return nil, fmt.Errorf("words.txt: no tab in %q: want a pattern, a tab, and what to write instead", line)
		}
		compiled, err := regexp.Compile("(?i)" + pattern)
		if err != nil {
			return nil, fmt.Errorf("words.txt: %w", err)
		}
		words = append(words, word{compiled, instead})
	}
	return words, nil
}
