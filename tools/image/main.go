// Command image builds Muster's container images out of programs that were built
// before: an image from nothing but static files, the same to the last bit for
// the same programs and the same time.
//
// It needs no container engine, and builds for several platforms at once. For
// each image it writes NAME.tar for `docker load` (of the first platform), and
// NAME/, an OCI layout with all platforms, for tools that push.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

// request is what the command line asks for.
type request struct {
	programs, out    string
	tag              string
	platforms        []v1.Platform
	version, release string
	time             time.Time
}

func parse(args []string) (*request, error) {
	var (
		r         request
		platforms string
		epoch     string
	)
	flags := flag.NewFlagSet("image", flag.ContinueOnError)
	flags.StringVar(&r.programs, "programs", "", "folder with the programs, a folder a platform: linux-amd64/muster, linux-amd64/plugins/…")
	flags.StringVar(&r.out, "out", "", "folder to write to")
	flags.StringVar(&r.tag, "tag", "latest", "tag of the images")
	flags.StringVar(&platforms, "platforms", "linux/amd64", "platforms, with commas between; `docker load` gets the first")
	flags.StringVar(&r.version, "version", "", "version for the labels")
	flags.StringVar(&r.release, "revision", "", "commit for the labels")
	flags.StringVar(&epoch, "time", "0", "time of all files and of the image, in seconds since 1970 (SOURCE_DATE_EPOCH)")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if r.programs == "" || r.out == "" {
		return nil, errors.New("-programs and -out are needed")
	}
	for p := range strings.SplitSeq(platforms, ",") {
		platform, err := v1.ParsePlatform(p)
		if err != nil {
			return nil, fmt.Errorf("-platforms: %w", err)
		}
		r.platforms = append(r.platforms, *platform)
	}
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("-time: %w", err)
	}
	r.time = time.Unix(seconds, 0).UTC()
	return &r, nil
}

func run(args []string) error {
	r, err := parse(args)
	if err != nil {
		return err
	}
	for _, recipe := range recipes() {
		if err := r.build(recipe); err != nil {
			return fmt.Errorf("image %s: %w", recipe.name, err)
		}
	}
	return nil
}

// build writes one image for all platforms.
func (r *request) build(recipe recipe) error {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for i, platform := range r.platforms {
		img, err := r.image(recipe, platform)
		if err != nil {
			return fmt.Errorf("for %s: %w", platform, err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &platform}})
		if i > 0 {
			continue
		}
		tag, err := name.NewTag(recipe.name + ":" + r.tag)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(r.out, 0o755); err != nil {
			return err
		}
		if err := tarball.WriteToFile(filepath.Join(r.out, filepath.Base(recipe.name)+".tar"), tag, img); err != nil {
			return err
		}
		id, err := img.ConfigName()
		if err != nil {
			return err
		}
		fmt.Println(tag.Name(), id)
	}
	to := filepath.Join(r.out, filepath.Base(recipe.name))
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	_, err := layout.Write(to, index)
	return err
}

// image makes the image for one platform.
func (r *request) image(recipe recipe, platform v1.Platform) (v1.Image, error) {
	layers, err := recipe.layers(filepath.Join(r.programs, platform.OS+"-"+platform.Architecture), r.time)
	if err != nil {
		return nil, err
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err = mutate.AppendLayers(img, layers...)
	if err != nil {
		return nil, err
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Variant = platform.OS, platform.Architecture, platform.Variant
	file.Created = v1.Time{Time: r.time}
	file.Config = recipe.config
	file.Config.Labels = map[string]string{
		"org.opencontainers.image.title":       filepath.Base(recipe.name),
		"org.opencontainers.image.description": recipe.description,
		"org.opencontainers.image.source":      "https://github.com/musterhq/muster",
		"org.opencontainers.image.version":     r.version,
		"org.opencontainers.image.revision":    r.release,
		"org.opencontainers.image.created":     r.time.Format(time.RFC3339),
	}
	return mutate.ConfigFile(img, file)
}
