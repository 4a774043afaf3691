package build

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/moby/go-archive"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

const (
	defaultDockerfile = "Dockerfile"
	ignoreFile        = ".dockerignore"
	// maxDockerfile bounds a Dockerfile that is added to the archive, in bytes.
	maxDockerfile = 1 << 20
)

// pack returns the archive of a local context, and the name of the Dockerfile in it.
func pack(config *types.BuildConfig) (io.ReadCloser, string, error) {
	dir := config.Context
	info, err := os.Stat(dir)
	if err != nil {
		return nil, "", err
	}
	if !info.IsDir() {
		return nil, "", fmt.Errorf("context %s is not a directory", dir)
	}
	name, added, err := dockerfile(config)
	if err != nil {
		return nil, "", err
	}
	excluded, err := excludes(dir, name)
	if err != nil {
		return nil, "", err
	}
	files, err := archive.TarWithOptions(dir, &archive.TarOptions{
		ExcludePatterns: excluded, ChownOpts: &archive.ChownOpts{},
	})
	if err != nil || added == nil {
		return files, name, err
	}
	return archive.ReplaceFileTarWrapper(files, map[string]archive.TarModifierFunc{
		name: func(string, *tar.Header, io.Reader) (*tar.Header, []byte, error) {
			return &tar.Header{Name: name, Mode: 0o600, ModTime: time.Unix(0, 0), Typeflag: tar.TypeReg}, added, nil
		},
	}), name, nil
}

// dockerfile returns the name of the Dockerfile in the archive. Its content is returned if
// it is not a file of the context.
func dockerfile(config *types.BuildConfig) (name string, content []byte, err error) {
	if config.DockerfileInline != "" {
		return generated(), []byte(config.DockerfileInline), nil
	}
	path := config.Dockerfile
	if path == "" {
		path = defaultDockerfile
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(config.Context, path)
	}
	if rel, err := filepath.Rel(config.Context, path); err == nil && filepath.IsLocal(rel) {
		if _, err := os.Stat(path); err != nil {
			return "", nil, err
		}
		return filepath.ToSlash(rel), nil, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return "", nil, err
	}
	defer func() { _ = f.Close() }()
	content, err = io.ReadAll(io.LimitReader(f, maxDockerfile+1))
	if err == nil && len(content) > maxDockerfile {
		err = fmt.Errorf("%s has more than %d KiB", path, maxDockerfile>>10)
	}
	return generated(), content, err
}

// generated is the name of a Dockerfile that is no file of the context.
func generated() string { return ".dockerfile." + rand.Text() }

// excludes returns the patterns of files that are not sent.
func excludes(dir, dockerfile string) ([]string, error) {
	var patterns []string
	for _, name := range []string{dockerfile + ignoreFile, ignoreFile} {
		content, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(name)))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if patterns, err = ignorefile.ReadAll(bytes.NewReader(content)); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		break
	}
	if len(patterns) == 0 {
		return nil, nil
	}
	// The Engine needs the Dockerfile, and removes from what it uses what .dockerignore says.
	for _, needed := range []string{dockerfile, ignoreFile} {
		if excluded, err := patternmatcher.MatchesOrParentMatches(needed, patterns); err != nil {
			return nil, fmt.Errorf("%s: %w", ignoreFile, err)
		} else if excluded {
			patterns = append(slices.Clone(patterns), "!"+needed)
		}
	}
	return patterns, nil
}
