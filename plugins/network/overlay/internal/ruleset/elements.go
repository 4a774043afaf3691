//go:build linux

package ruleset

// elements are the elements of a table that are in the kernel. A change of some of them
// costs nothing for the others.
type elements struct {
	at map[place]content
	// of holds the places by owner.
	of map[string]map[place]struct{}
	// leading counts the elements that lead to a chain.
	leading map[string]int
	// verdicts reports whether the elements of a set lead to chains.
	verdicts func(set string) bool
}

func newElements(verdicts func(set string) bool) elements {
	return elements{
		at: make(map[place]content), of: make(map[string]map[place]struct{}), leading: make(map[string]int), verdicts: verdicts,
	}
}

// set adds an element or replaces the one at its place.
func (e *elements) set(at place, c content) {
	e.remove(at)
	e.at[at] = c
	if e.of[c.owner] == nil {
		e.of[c.owner] = make(map[place]struct{})
	}
	e.of[c.owner][at] = struct{}{}
	if e.verdicts(at.set) {
		e.leading[c.value]++
	}
}

// remove removes an element if it is there.
func (e *elements) remove(at place) {
	c, there := e.at[at]
	if !there {
		return
	}
	delete(e.at, at)
	if delete(e.of[c.owner], at); len(e.of[c.owner]) == 0 {
		delete(e.of, c.owner)
	}
	if e.verdicts(at.set) {
		if e.leading[c.value]--; e.leading[c.value] == 0 {
			delete(e.leading, c.value)
		}
	}
}
