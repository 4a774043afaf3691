package build_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/client"

	"github.com/musterhq/muster/stack/build"
	"github.com/musterhq/muster/stack/compose"
	"github.com/musterhq/muster/test/kit/need"
)

// engine returns a client of the machine's Engine, and a name for an image of the test's
// own, which is removed with the test.
func engine(t *testing.T) (*client.Client, string) {
	t.Helper()
	c, err := client.NewClientWithOpts(client.FromEnv, client.WithAPIVersionNegotiation())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if _, err := c.Ping(t.Context()); err != nil {
		need.Met(t, fmt.Errorf("no Docker Engine answers: %w", err))
	}
	name := fmt.Sprintf("muster-build-test-%d-%s", os.Getpid(), strings.ToLower(t.Name()))
	t.Cleanup(func() {
		ctx := context.Background()
		images, err := c.ImageList(ctx, image.ListOptions{All: true})
		if err != nil {
			t.Error(err)
		}
		for _, i := range images {
			for _, tag := range i.RepoTags {
				if strings.HasPrefix(tag, name) {
					_, _ = c.ImageRemove(ctx, tag, image.RemoveOptions{Force: true})
				}
			}
		}
	})
	return c, name
}

func buildImage(t *testing.T, name string, config *types.BuildConfig) (image, printed string, err error) {
	t.Helper()
	var out bytes.Buffer
	b, err := build.New(t.Context(), &out)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()
	image, err = b.Build(t.Context(), compose.Build{Service: "shop_web", Image: name, Config: config})
	return image, out.String(), err
}

func writeFiles(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestBuildNamesImageByContent(t *testing.T) {
	c, name := engine(t)
	dir := t.TempDir()
	writeFiles(t, dir, map[string]string{
		"Dockerfile":    "FROM scratch\nARG COLOR\nLABEL color=${COLOR}\nCOPY . /files/\n",
		"kept":          "1",
		"ignored":       "x",
		".dockerignore": "ignored\nDockerfile\n",
	})
	blue := "blue"
	config := &types.BuildConfig{Context: dir, Args: types.MappingWithEquals{"COLOR": &blue}, Labels: types.Labels{"team": "web"}}
	first, printed, err := buildImage(t, name+":1.0", config)
	if err != nil {
		t.Fatalf("%v\n%s", err, printed)
	}
	if !strings.HasPrefix(first, name+":1.0-") {
		t.Errorf("the image is named %q, want %s:1.0- and a part of its id", first, name)
	}
	for _, want := range []string{"shop_web: ", "COPY . /files/", "shop_web: built " + first} {
		if !strings.Contains(printed, want) {
			t.Errorf("the progress lacks %q:\n%s", want, printed)
		}
	}
	got, err := c.ImageInspect(t.Context(), first)
	if err != nil {
		t.Fatal(err)
	}
	if got.Config.Labels["color"] != "blue" || got.Config.Labels["team"] != "web" {
		t.Errorf("labels %v, want those of the build", got.Config.Labels)
	}
	// A file that is ignored makes no difference, and one that is not does.
	writeFiles(t, dir, map[string]string{"ignored": "y"})
	if again, _, err := buildImage(t, name+":1.0", config); err != nil || again != first {
		t.Errorf("built again: %q, %v; want %q", again, err, first)
	}
	writeFiles(t, dir, map[string]string{"kept": "2"})
	if changed, _, err := buildImage(t, name+":1.0", config); err != nil || changed == first {
		t.Errorf("built with other content: %q, %v; want another name", changed, err)
	}
}

func TestBuildTakesDockerfilesOutsideOfContext(t *testing.T) {
	c, name := engine(t)
	dir := t.TempDir()
	writeFiles(t, dir, map[string]string{"context/file": "1", "other.Dockerfile": "FROM scratch\nLABEL from=file\nCOPY file /\n"})
	for from, config := range map[string]*types.BuildConfig{
		"file":   {Context: filepath.Join(dir, "context"), Dockerfile: filepath.Join(dir, "other.Dockerfile")},
		"inline": {Context: filepath.Join(dir, "context"), DockerfileInline: "FROM scratch\nLABEL from=inline\nCOPY file /\n"},
	} {
		image, printed, err := buildImage(t, name, config)
		if err != nil {
			t.Errorf("%s: %v\n%s", from, err, printed)
			continue
		}
		if got, err := c.ImageInspect(t.Context(), image); err != nil || got.Config.Labels["from"] != from {
			t.Errorf("%s: %v; labels %v", from, err, got.Config.Labels)
		}
	}
}

func TestBuildFailureNamesServiceAndShowsOutput(t *testing.T) {
	_, name := engine(t)
	dir := t.TempDir()
	writeFiles(t, dir, map[string]string{"Dockerfile": "FROM scratch\nCOPY missing /\n"})
	_, printed, err := buildImage(t, name, &types.BuildConfig{Context: dir})
	if err == nil || !strings.Contains(err.Error(), "shop_web") || !strings.Contains(err.Error(), "missing") {
		t.Errorf("error %v, want one that names the service and the file\n%s", err, printed)
	}
	for want, config := range map[string]*types.BuildConfig{
		"build.secrets, build.ssh": {Context: dir, SSH: types.SSHConfig{{ID: "default"}}, Secrets: []types.ServiceSecretConfig{{Source: "s"}}},
		"build.platforms":          {Context: dir, Platforms: []string{"linux/amd64", "linux/arm64"}},
		"no such file":             {Context: filepath.Join(dir, "none")},
	} {
		if _, _, err := buildImage(t, name, config); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}

func TestBuilderSaysWhenNoEngineAnswers(t *testing.T) {
	t.Setenv("DOCKER_HOST", "unix://"+filepath.Join(t.TempDir(), "none"))
	if _, err := build.New(t.Context(), new(bytes.Buffer)); err == nil || !strings.Contains(err.Error(), "DOCKER_HOST") {
		t.Errorf("error %v, want one that names DOCKER_HOST", err)
	}
}
