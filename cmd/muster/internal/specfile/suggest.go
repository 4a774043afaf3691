package specfile

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// suggestion names the field that was probably meant: one with nearly the same
// name, or one of this name further inside. It is empty if there is none.
func suggestion(md protoreflect.MessageDescriptor, name string) string {
	best, distance := "", max(2, len(name)/3)+1
	for i := range md.Fields().Len() {
		candidate := md.Fields().Get(i).JSONName()
		if d := editDistance(normal(name), normal(candidate)); d < distance {
			best, distance = candidate, d
		}
	}
	// A typing error is likelier than a wrong place, but not than a name that
	// exists elsewhere.
	if distance > 1 {
		if inside := inside(md, name); inside != "" {
			best = inside
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

// inside returns the path of the nearest field below a message that has this name.
func inside(md protoreflect.MessageDescriptor, name string) string {
	type place struct {
		md   protoreflect.MessageDescriptor
		path string
	}
	seen := map[protoreflect.FullName]bool{md.FullName(): true}
	for queue := []place{{md: md}}; len(queue) > 0; queue = queue[1:] {
		at := queue[0]
		for i := range at.md.Fields().Len() {
			fd := at.md.Fields().Get(i)
			path := join(at.path, fd.JSONName())
			if at.path != "" && normal(fd.JSONName()) == normal(name) {
				return path
			}
			next := fd.Message()
			if next == nil || fd.IsMap() || fd.IsList() || seen[next.FullName()] || next.FullName().Parent() == "google.protobuf" {
				continue
			}
			seen[next.FullName()] = true
			queue = append(queue, place{next, path})
		}
	}
	return ""
}

// normal writes a name without regard to the spelling: camelCase, snake_case and
// kebab-case are the same.
func normal(name string) string {
	return strings.ToLower(strings.NewReplacer("_", "", "-", "").Replace(name))
}

// editDistance counts the letters to insert, remove or replace.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
