package objects

import (
	"fmt"
	"strings"
)

// Ambiguous says that a reference fits several objects.
type Ambiguous struct {
	Ref string
	// Candidates are some of them.
	Candidates []string
}

func (a *Ambiguous) Error() string {
	return fmt.Sprintf("%q is ambiguous: it fits %s", a.Ref, strings.Join(a.Candidates, ", "))
}

// maxCandidates bounds what an error about an ambiguous reference lists.
const maxCandidates = 5

func fold(name string) string { return strings.ToLower(name) }

// FindService resolves an id, a name, or a unique prefix of an id, in this
// order. The service is nil if nothing fits.
func (r *Reader) FindService(ref string) (*Service, error) {
	if s, ok := r.v.services.Get(ref); ok {
		return s, nil
	}
	if id, ok := r.v.serviceIDs[fold(ref)]; ok {
		if s, ok := r.v.services.Get(id); ok {
			return s, nil
		}
	}
	return unique(ref, r.Services, func(s *Service) (string, string) { return s.ID, s.Record.GetSpec().GetName() })
}

// FindTask resolves an id, a task's whole name, or a unique prefix of an id.
func (r *Reader) FindTask(ref string) (*Task, error) {
	if t, ok := r.v.tasks.Get(ref); ok {
		return t, nil
	}
	if i := strings.LastIndexByte(ref, '.'); i >= 0 {
		if t, ok := r.v.tasks.Get(ref[i+1:]); ok && fold(r.TaskName(t)) == fold(ref) {
			return t, nil
		}
	}
	return unique(ref, r.Tasks, func(t *Task) (string, string) { return t.ID, r.TaskSource(t) })
}

// FindNode resolves an id, a host name, or a unique prefix of an id. Host names
// need not be unique.
func (r *Reader) FindNode(ref string) (*Node, error) {
	if n, ok := r.v.nodes.Get(ref); ok {
		return n, nil
	}
	var found []*Node
	r.Nodes("", func(n *Node) bool {
		if strings.EqualFold(n.Hostname(), ref) {
			found = append(found, n)
		}
		return len(found) <= maxCandidates
	})
	switch len(found) {
	case 0:
		return unique(ref, r.Nodes, func(n *Node) (string, string) { return n.ID, n.Hostname() })
	case 1:
		return found[0], nil
	}
	a := &Ambiguous{Ref: ref}
	for _, n := range found {
		a.Candidates = append(a.Candidates, n.ID+" ("+n.Hostname()+")")
	}
	return nil, a
}

// unique finds the one object whose id begins with ref.
func unique[T any](ref string, ascend func(string, func(*T) bool), describe func(*T) (id, name string)) (*T, error) {
	if ref == "" {
		return nil, nil
	}
	var found []*T
	ascend(ref, func(o *T) bool {
		if id, _ := describe(o); !strings.HasPrefix(id, ref) {
			return false
		}
		found = append(found, o)
		return len(found) <= maxCandidates
	})
	switch len(found) {
	case 0:
		return nil, nil
	case 1:
		return found[0], nil
	}
	a := &Ambiguous{Ref: ref}
	for _, o := range found {
		id, name := describe(o)
		a.Candidates = append(a.Candidates, id+" ("+name+")")
	}
	return nil, a
}

// ServiceByName returns the service of a name, nil if there is none.
func (r *Reader) ServiceByName(name string) *Service {
	s, _ := r.v.services.Get(r.v.serviceIDs[fold(name)])
	return s
}
