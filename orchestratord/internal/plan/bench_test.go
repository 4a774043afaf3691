package plan_test

import (
	"testing"

	"github.com/musterhq/muster/orchestratord/internal/plan"
)

// BenchmarkLook is a look at 10,000 tasks that all run, which is what most
// looks at a large service are.
func BenchmarkLook(b *testing.B) {
	w := newWorld()
	w.spec(null(1))
	w.replicas(10_000)
	w.apply(w.decide(b))
	w.settle()
	v := w.view()
	for b.Loop() {
		if p, err := plan.Decide(v); err != nil || !p.Empty() {
			b.Fatal("not settled")
		}
	}
}

func BenchmarkCreate(b *testing.B) {
	w := newWorld()
	w.spec(null(1))
	w.replicas(10_000)
	v := w.view()
	for b.Loop() {
		if p, err := plan.Decide(v); err != nil || len(p.Slots) != 10_000 {
			b.Fatal("not created")
		}
	}
}

func BenchmarkUpdate(b *testing.B) {
	w := newWorld()
	w.spec(null(1))
	w.replicas(10_000)
	w.apply(w.decide(b))
	w.settle()
	w.spec(null(2))
	v := w.view()
	for b.Loop() {
		if p, err := plan.Decide(v); err != nil || len(p.Slots) != 10_000 {
			b.Fatal("not updated")
		}
	}
}

func BenchmarkScaleDown(b *testing.B) {
	w := newWorld()
	w.spec(null(1))
	w.replicas(10_000)
	w.apply(w.decide(b))
	w.settle()
	w.replicas(5_000)
	v := w.view()
	for b.Loop() {
		if p, err := plan.Decide(v); err != nil || len(p.Slots) != 5_000 {
			b.Fatal("not scaled")
		}
	}
}
