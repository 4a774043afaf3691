package placement_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/musterhq/muster/internal/placement"
)

// TestConstraintsAllowCharactersOfSwarmKit tries each character at the beginning, within
// and at the end of values and of names of labels. The expressions are SwarmKit's.
func TestConstraintsAllowCharactersOfSwarmKit(t *testing.T) {
	value := regexp.MustCompile(`^[a-zA-Z0-9:\-_\s\.\*\(\)\?\+\[\]\\\^\$\|/]+$`)
	label := regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9-_.]*$`)
	texts := []string{"", "a", "\xff", "ä", "a\xffb", "日本"}
	for c := range rune(256) {
		for _, s := range []string{string(c), string([]byte{byte(c)})} {
			texts = append(texts, s, s+"a", "a"+s, "a"+s+"a", s+"-")
		}
	}
	for _, text := range texts {
		_, err := placement.ParseConstraints([]string{"node.id==" + text})
		if want := value.MatchString(strings.TrimSpace(text)); (err == nil) != want {
			t.Errorf("value %q: %v, want it allowed: %v", text, err, want)
		}
		if strings.ContainsAny(text, "=!") {
			continue // they may end the name
		}
		_, err = placement.ParseConstraints([]string{"node.labels." + text + "==x"})
		if want := label.MatchString(strings.TrimRight("x"+text, " \t\n\v\f\r\u0085\u00a0")[1:]); (err == nil) != want {
			t.Errorf("label %q: %v, want it allowed: %v", text, err, want)
		}
	}
}

// TestConstraintsAreParsedCheaply bounds what each parse allocates: schedulers parse the
// constraints of every group of tasks.
func TestConstraintsAreParsedCheaply(t *testing.T) {
	expressions := []string{"node.labels.disk==ssd", "node.platform.os!=windows", "engine.labels.rack==r7"}
	if n := testing.AllocsPerRun(100, func() {
		if _, err := placement.ParseConstraints(expressions); err != nil {
			t.Error(err)
		}
	}); n > 10 {
		t.Errorf("%v allocations for three constraints, want at most 10", n)
	}
}
