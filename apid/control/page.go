package control

import (
	"encoding/base64"
	"encoding/binary"
	"hash/fnv"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/musterhq/muster/apid/objects"
	"github.com/musterhq/muster/apid/validate"
)

const (
	defaultPage = 100
	maxPage     = 1000
	// pageVersion begins the tokens of this form.
	pageVersion = 1
	maxToken    = 4096
)

// page cuts a list, in order of id, into pages. A token holds the last id of
// the page before, so that objects that come and go meanwhile disturb nothing.
type page struct {
	// from is where the page begins.
	from string

	size   int
	filter uint64
	last   string
	taken  int
	more   bool
}

// newPage reads a request's page_size and page_token. The token holds a hash of
// the request's other fields, which must not change between pages.
func newPage(req proto.Message, size uint32, token string) (page, error) {
	if err := checkLists(req); err != nil {
		return page{}, err
	}
	p := page{size: int(min(size, maxPage)), filter: filterHash(req)}
	if size == 0 {
		p.size = defaultPage
	}
	if token == "" {
		return p, nil
	}
	if len(token) > maxToken {
		return page{}, errPageToken()
	}
	b, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || len(b) < 10 || b[0] != pageVersion {
		return page{}, errPageToken()
	}
	if binary.BigEndian.Uint64(b[1:9]) != p.filter {
		return page{}, validate.Field("pageToken", "belongs to another request: the other fields must not change between pages")
	}
	// The page begins after that id.
	p.from = string(b[9:]) + "\x00"
	return p, nil
}

func errPageToken() error {
	return validate.Field("pageToken", "is not a token of this list; begin without one")
}

// take adds an object to the page. False means that the page is full.
func (p *page) take(id string) bool {
	if p.taken == p.size {
		p.more = true
		return false
	}
	p.taken++
	p.last = id
	return true
}

// next returns the token of the next page, or "".
func (p *page) next() string {
	if !p.more {
		return ""
	}
	b := binary.BigEndian.AppendUint64([]byte{pageVersion}, p.filter)
	return base64.RawURLEncoding.EncodeToString(append(b, p.last...))
}

// filterHash hashes a list request without its paging.
func filterHash(req proto.Message) uint64 {
	m := proto.Clone(req)
	for _, name := range []protoreflect.Name{"page_size", "page_token"} {
		if fd := m.ProtoReflect().Descriptor().Fields().ByName(name); fd != nil {
			m.ProtoReflect().Clear(fd)
		}
	}
	h := fnv.New64a()
	// A message that came over the wire can be encoded.
	b, _ := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	_, _ = h.Write(append([]byte(m.ProtoReflect().Descriptor().FullName()), b...))
	return h.Sum64()
}

func fold(s string) string { return strings.ToLower(s) }

func foldAll(list []string) []string {
	folded := make([]string, len(list))
	for i, s := range list {
		folded[i] = fold(s)
	}
	return folded
}

// oneOf reports whether a value is among those wanted; none wants all.
func oneOf[T comparable](wanted []T, v T) bool {
	for _, w := range wanted {
		if w == v {
			return true
		}
	}
	return len(wanted) == 0
}

// onePrefix reports whether a value begins with one of the prefixes; none
// wants all.
func onePrefix(prefixes []string, v string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(v, p) {
			return true
		}
	}
	return len(prefixes) == 0
}

// labelFilter is a list of conditions on labels that must all hold.
type labelFilter []struct {
	key, value string
	// present asks for the key only.
	present bool
	// not turns the condition round.
	not bool
}

func parseLabels(list []string) (labelFilter, error) {
	f := make(labelFilter, len(list))
	for i, l := range list {
		var valued bool
		f[i].key, f[i].value, valued = strings.Cut(l, "=")
		f[i].present = !valued
		if valued {
			f[i].key, f[i].not = strings.CutSuffix(f[i].key, "!")
		} else {
			f[i].key, f[i].not = strings.CutPrefix(f[i].key, "!")
		}
		if f[i].key == "" {
			return nil, validate.Field("labels", `must be "key", "!key", "key=value" or "key!=value"`)
		}
	}
	return f, nil
}

func (f labelFilter) match(labels map[string]string) bool {
	for _, l := range f {
		v, ok := labels[l.key]
		if holds := ok && (l.present || v == l.value); holds == l.not {
			return false
		}
	}
	return true
}

// matchObject does it for an object. One without labels passes no condition.
func (f labelFilter) matchObject(r *objects.Reader, o objects.Object) bool {
	if len(f) == 0 {
		return true
	}
	labels, has := o.Labels(r)
	return has && f.match(labels)
}
