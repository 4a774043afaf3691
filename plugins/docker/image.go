package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/distribution/reference"
	"github.com/docker/docker/api/types/image"
	"go.uber.org/zap"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/sdk"
)

// ensureImage makes an image be there as the policy wants it. The default is to
// pull, and to do with a local image if that fails, as Swarm does: a registry
// that is away must not keep a service down that has run here before.
func (e *Executor) ensureImage(ctx context.Context, spec *musterv1.ContainerSpec) error {
	named, err := parseImage(spec.GetImage())
	if err != nil {
		return err
	}
	local, err := e.hasImage(ctx, spec.GetImage())
	if err != nil {
		return err
	}
	switch spec.GetPullOptions().GetPolicy() {
	case musterv1.PullOptions_NEVER:
		if !local {
			return sdk.NodeFault(fmt.Errorf("image: there is no image %s on this node, and the pull policy is never to pull it", spec.GetImage()))
		}
		return nil
	case musterv1.PullOptions_MISSING:
		if local {
			return nil
		}
	default:
		if local && exact(named) {
			return nil
		}
	}
	pullErr := e.pull(ctx, spec)
	switch {
	case pullErr == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case local:
		e.log.Warn("failed to pull image; using the local one", zap.String("image", spec.GetImage()), zap.Error(pullErr))
		return nil
	default:
		// Another node may have it, or reach the registry.
		return sdk.NodeFault(fmt.Errorf("pull image %s: %w", spec.GetImage(), pullErr))
	}
}

// parseImage reads an image's name; nil for a bare image id.
func parseImage(name string) (reference.Named, error) {
	parsed, err := reference.ParseAnyReference(name)
	if err != nil {
		return nil, sdk.SpecFault("image", fmt.Errorf("%q is not the name of an image: %w", name, err))
	}
	named, ok := parsed.(reference.Named)
	if !ok {
		return nil, nil
	}
	return named, nil
}

// exact tells whether a name says which bytes it means: then a local image is
// as good as the registry's.
func exact(named reference.Named) bool {
	if named == nil {
		return true
	}
	_, digested := named.(reference.Digested)
	return digested
}

func (e *Executor) hasImage(ctx context.Context, name string) (bool, error) {
	_, err := e.engine.ImageInspect(ctx, name)
	if isNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, engineError(fmt.Errorf("look for the image: %w", err))
	}
	return true, nil
}

// pull pulls an image and returns when it is there.
func (e *Executor) pull(ctx context.Context, spec *musterv1.ContainerSpec) error {
	stream, err := e.engine.ImagePull(ctx, spec.GetImage(), image.PullOptions{RegistryAuth: spec.GetPullOptions().GetRegistryAuth()})
	if err != nil {
		return err
	}
	err = readProgress(stream)
	return errors.Join(err, stream.Close())
}

// readProgress reads a stream of progress messages to its end. An error in the
// midst of a pull comes as one of them.
func readProgress(stream io.Reader) error {
	decoder := json.NewDecoder(stream)
	for {
		var message struct {
			Error       string `json:"error"`
			ErrorDetail struct {
				Message string `json:"message"`
			} `json:"errorDetail"`
		}
		err := decoder.Decode(&message)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("read the progress: %w", err)
		case message.ErrorDetail.Message != "":
			return errors.New(message.ErrorDetail.Message)
		case message.Error != "":
			return errors.New(message.Error)
		}
	}
}
