package metrics

import (
	"context"
	"math"
	"slices"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/rules"
	"github.com/prometheus/prometheus/storage"
)

// This file tells of the end of alerts that fired when an earlier process ended: rules know
// only of those that have fired since they were read.

// outageTolerance is for how long alerts of an earlier process count.
const outageTolerance = time.Hour

// alertMetric is by what rules store that an alert is pending or fires.
const alertMetric = "ALERTS"

// fired returns the labels of the alerts that fired at the end of the process before.
func (db *DB) fired(now time.Time) (list []labels.Labels) {
	r := reader{ctx: context.Background(), db: db.open.Load()}
	err := r.each(now.Add(-outageTolerance), now, nil, func(s storage.Series) error {
		last, err := latest(s)
		if err == nil && !math.IsNaN(last.n) { // which tells the end
			list = append(list, labels.NewBuilder(s.Labels()).Del(model.MetricNameLabel, "alertstate").Labels())
		}
		return err
	}, labels.MustNewMatcher(labels.MatchEqual, model.MetricNameLabel, alertMetric), labels.MustNewMatcher(labels.MatchEqual, "alertstate", "firing"))
	if err != nil {
		db.failed("reading the alerts of an earlier process", err)
	}
	return list
}

// tellEnded tells of those alerts in left that are not active any more, once all rules had
// the time to find them again, and returns those of which nothing is known yet.
func (db *DB) tellEnded(ctx context.Context, left []labels.Labels, now time.Time) []labels.Labels {
	if len(left) == 0 {
		return nil
	}
	states := map[uint64]rules.AlertState{}
	for _, g := range db.ruleGroups() {
		if len(g.AlertingRules()) > 0 && g.GetLastEvaluation().Sub(db.since) <= g.Interval() {
			return left // it looks once more before what it stored of earlier is known to it
		}
		for _, r := range g.AlertingRules() {
			for _, a := range r.ActiveAlerts() {
				states[a.Labels.Hash()] = max(states[a.Labels.Hash()], a.State)
			}
		}
	}
	return slices.DeleteFunc(left, func(l labels.Labels) bool {
		state, active := states[l.Hash()]
		if !active {
			db.notify(ctx, "", &rules.Alert{Labels: l, FiredAt: db.since, ResolvedAt: now})
		}
		return !active || state == rules.StateFiring // else it may still fire
	})
}
