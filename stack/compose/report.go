package compose

import (
	"fmt"
	"slices"
	"strings"
)

// report collects what is wrong with the files, and what of them has no effect.
type report struct {
	index  *index
	ignore bool
	// errors keep the files from becoming a stack.
	errors  []Problem
	ignored []Problem
}

// unsupported says that a key asks for something that Muster cannot do.
func (r *report) unsupported(path []string, hint, reason string) {
	p := r.problem(path, hint, reason)
	p.Unsupported = true
	if r.ignore {
		add(&r.ignored, p)
		return
	}
	add(&r.errors, p)
}

// invalid says that a key is wrong, or that leaving it out would make another stack of it.
func (r *report) invalid(path []string, hint, format string, args ...any) {
	add(&r.errors, r.problem(path, hint, fmt.Sprintf(format, args...)))
}

// note says that a key has no effect.
func (r *report) note(path []string, reason string) {
	add(&r.ignored, r.problem(path, "", reason))
}

func (r *report) problem(path []string, hint, reason string) Problem {
	file, line := r.index.find(path, hint)
	return Problem{File: file, Line: line, Key: strings.Join(path, "."), Reason: reason}
}

func add(list *[]Problem, p Problem) {
	if !slices.Contains(*list, p) {
		*list = append(*list, p)
	}
}

// err returns all that is wrong, in the order of the files.
func (r *report) err() error {
	if len(r.errors) == 0 {
		return nil
	}
	r.sort(r.errors)
	return &Error{Problems: r.errors}
}

func (r *report) sort(list []Problem) {
	order := func(file string) int {
		return slices.IndexFunc(r.index.sources, func(s *source) bool { return s.name == file })
	}
	slices.SortStableFunc(list, func(a, b Problem) int {
		if a.File != b.File {
			return order(a.File) - order(b.File)
		}
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return strings.Compare(a.Key, b.Key)
	})
}
