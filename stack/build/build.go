// Package build builds the images of a stack on a Docker Engine.
//
// The context of a build is sent as one archive, so that BuildKit needs no session with
// its client. What needs one is refused: secrets, SSH agents and further contexts.
package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/distribution/reference"
	dockerbuild "github.com/docker/docker/api/types/build"
	"github.com/docker/docker/api/types/versions"
	"github.com/docker/docker/client"

	"github.com/musterhq/muster/stack/compose"
)

// buildKitVersion is the first version of the Engine's API that has BuildKit.
const buildKitVersion = "1.39"

// idLength is how many characters of an image's id its tag has.
const idLength = 12

// Builder builds images on a Docker Engine.
type Builder struct {
	engine  *client.Client
	builder dockerbuild.BuilderVersion
	out     io.Writer
}

// New connects to the Engine that the environment names (DOCKER_HOST), or else to that of
// this machine. Progress goes to out. The caller closes the builder.
func New(ctx context.Context, out io.Writer) (*Builder, error) {
	engine, err := client.NewClientWithOpts(client.FromEnv, client.WithAPIVersionNegotiation())
	if err != nil {
		return nil, fmt.Errorf("configure the client of the Docker Engine: %w", err)
	}
	ping, err := engine.Ping(ctx)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("images are built by the Docker Engine of this machine, or that of DOCKER_HOST, which does not answer: %w", err), engine.Close())
	}
	b := &Builder{engine: engine, builder: dockerbuild.BuilderV1, out: out}
	if ping.OSType == "linux" && versions.GreaterThanOrEqualTo(ping.APIVersion, buildKitVersion) {
		b.builder = dockerbuild.BuilderBuildKit
	}
	return b, nil
}

// Close closes the connection to the Engine.
func (b *Builder) Close() error { return b.engine.Close() }

// Build builds an image and returns the name that tasks should use: that of the image with
// a part of its id as tag. An image with other content has another name, so that services
// are updated, and can be rolled back.
func (b *Builder) Build(ctx context.Context, what compose.Build) (string, error) {
	image, err := b.build(ctx, what)
	switch {
	case ctx.Err() != nil:
		return "", ctx.Err()
	case err != nil:
		return "", fmt.Errorf("build the image of %s: %w", what.Service, err)
	}
	return image, nil
}

func (b *Builder) build(ctx context.Context, what compose.Build) (string, error) {
	config := what.Config
	if err := check(config); err != nil {
		return "", err
	}
	named, err := reference.ParseNormalizedNamed(what.Image)
	if err != nil {
		return "", fmt.Errorf("image %q: %w", what.Image, err)
	}
	options, err := b.options(config)
	if err != nil {
		return "", err
	}
	options.Tags = append([]string{what.Image}, config.Tags...)
	var body io.Reader
	if remote(config.Context) {
		options.RemoteContext = config.Context
		if config.DockerfileInline != "" {
			return "", errors.New("dockerfile_inline needs a context that is a local directory")
		}
	} else {
		archive, dockerfile, err := pack(config)
		if err != nil {
			return "", err
		}
		defer func() { _ = archive.Close() }()
		options.Dockerfile, body = dockerfile, archive
	}
	response, err := b.engine.ImageBuild(ctx, body, options)
	if err != nil {
		return "", err
	}
	defer func() { _ = response.Body.Close() }()
	id, err := newProgress(what.Service, b.out).read(response.Body)
	if err != nil {
		return "", err
	}
	tagged, err := withID(named, id)
	if err != nil {
		return "", err
	}
	if err := b.engine.ImageTag(ctx, id, tagged); err != nil {
		return "", err
	}
	_, _ = fmt.Fprintf(b.out, "%s: built %s\n", what.Service, tagged)
	return tagged, nil
}

// withID adds a part of an image's id to its tag.
func withID(named reference.Named, id string) (string, error) {
	short := strings.TrimPrefix(id, "sha256:")
	short = short[:min(len(short), idLength)]
	if tagged, ok := named.(reference.Tagged); ok {
		short = tagged.Tag() + "-" + short
	}
	full, err := reference.WithTag(reference.TrimNamed(named), short)
	if err != nil {
		return "", fmt.Errorf("image %q: %w", named, err)
	}
	return reference.FamiliarString(full), nil
}

// check refuses keys of "build" that Build cannot honour.
func check(config *types.BuildConfig) error {
	set := map[string]bool{
		"secrets": len(config.Secrets) > 0, "ssh": len(config.SSH) > 0, "additional_contexts": len(config.AdditionalContexts) > 0,
		"entitlements": len(config.Entitlements) > 0, "privileged": config.Privileged, "cache_to": len(config.CacheTo) > 0,
		"no_cache_filter": len(config.NoCacheFilter) > 0, "provenance": wanted(config.Provenance), "sbom": wanted(config.SBOM),
		"platforms": len(config.Platforms) > 1, "ulimits": len(config.Ulimits) > 0, "isolation": config.Isolation != "",
	}
	var refused []string
	for _, key := range slices.Sorted(maps.Keys(set)) {
		if set[key] {
			refused = append(refused, "build."+key)
		}
	}
	if len(refused) == 0 {
		return nil
	}
	return fmt.Errorf("%s: not supported here; build the image with docker compose build, and name it in image", strings.Join(refused, ", "))
}

// wanted reports whether an attestation is asked for. "false" asks for none.
func wanted(attestation string) bool { return attestation != "" && attestation != "false" }

// options are those of a build apart from its context.
func (b *Builder) options(config *types.BuildConfig) (dockerbuild.ImageBuildOptions, error) {
	options := dockerbuild.ImageBuildOptions{
		Version: b.builder, Dockerfile: config.Dockerfile, BuildArgs: config.Args, Labels: config.Labels, CacheFrom: config.CacheFrom,
		NoCache: config.NoCache, PullParent: config.Pull, ExtraHosts: config.ExtraHosts.AsList(":"), NetworkMode: config.Network,
		Target: config.Target, ShmSize: int64(config.ShmSize), Remove: true, ForceRemove: true,
	}
	if len(config.Platforms) == 1 {
		options.Platform = config.Platforms[0]
	}
	return options, nil
}

// remote reports whether the Engine fetches a context itself: a Git repository or an archive.
func remote(context string) bool {
	return strings.Contains(context, "://") || strings.HasPrefix(context, "git@") || strings.HasPrefix(context, "github.com/")
}
