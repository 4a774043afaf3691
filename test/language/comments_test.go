package language

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// story matches functions of tests, whose comments may begin with what happens instead
// of the name.
var story = regexp.MustCompile(`^(Test|Benchmark|Fuzz|Example)`)

// TestCommentsBeginWithTheNameTheyExplain finds comments that kept a former name of
// their function or type.
func TestCommentsBeginWithTheNameTheyExplain(t *testing.T) {
	files, checked := token.NewFileSet(), 0
	for name := range strings.Lines(git(t, "ls-files", "*.go")) {
		name = strings.TrimSpace(name)
		if generated.MatchString(name) {
			continue
		}
		file, err := parser.ParseFile(files, filepath.Join(root, name), nil, parser.ParseComments|parser.SkipObjectResolution)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed, and not committed yet
		}
		if err != nil {
			t.Error(err)
			continue
		}
		checked++
		for _, declaration := range file.Decls {
			for declared, comment := range explained(declaration) {
				first := firstWord(comment.Text())
				if story.MatchString(declared) && !story.MatchString(first) {
					continue
				}
				if !strings.EqualFold(first, declared) {
					t.Errorf("%s: the comment of %s begins with %q", files.Position(comment.Pos()), declared, first)
				}
			}
		}
	}
	if checked == 0 {
		t.Fatal("no file was checked")
	}
}

// explained returns the functions and types of a declaration that have a comment.
func explained(declaration ast.Decl) map[string]*ast.CommentGroup {
	comments := map[string]*ast.CommentGroup{}
	switch d := declaration.(type) {
	case *ast.FuncDecl:
		comments[d.Name.Name] = d.Doc
	case *ast.GenDecl:
		for _, spec := range d.Specs {
			if s, ok := spec.(*ast.TypeSpec); ok {
				if comments[s.Name.Name] = s.Doc; s.Doc == nil && !d.Lparen.IsValid() {
					comments[s.Name.Name] = d.Doc
				}
			}
		}
	}
	for name, comment := range comments {
		if comment.Text() == "" {
			delete(comments, name)
		}
	}
	return comments
}

// firstWord returns the word that a comment begins with, after an article.
func firstWord(comment string) string {
	words := strings.Fields(comment)
	if len(words) > 1 && (words[0] == "A" || words[0] == "An" || words[0] == "The") {
		words = words[1:]
	}
	return strings.TrimSuffix(strings.Trim(words[0], ",.:;'()"), "'s")
}
