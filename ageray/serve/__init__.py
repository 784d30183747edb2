"""The predictor behind HTTP, on Ray Serve: `ageray.serve.app:app` is what `serve run` and `serve deploy` import,
`ageray.serve.app.start` what `jobs.serve` calls.

browser or program
  -> Ingress     HTTP: keys, limits, a bounded queue; decodes and detects in threads (`ageray.stages.detect`)
  -> AgeModel     holds the model; faces of all requests share its batches (`ageray.stages.predict`)
  -> BatchJobs   starts scoring jobs as processes of their own and follows them
"""
